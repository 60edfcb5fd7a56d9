"""A program that knows Transformers and a Harmon folder, and cannot import this project.

    python -P stranger.py FOLDER ROOT OUT    ROOT: this project, whose packages must stay unknown

Writes OUT.safetensors and OUT.json: what the folder's own code computes.
"""

import importlib.abc
import json
import sys
from pathlib import Path


class Absent(importlib.abc.MetaPathFinder):
    """This project is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"harmon", "pipelines", "flows", "recaption", "filtering"}:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return None


def main(folder: str, root: str, out: str) -> None:
    sys.meta_path.insert(0, Absent())
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoProcessor, AutoTokenizer

    torch.set_num_threads(1)
    model, report = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    model.eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    picture = Image.linear_gradient("L").resize((40, 56)).convert("RGB")
    asked = processor(text=["What is this?", "Is it a long question?"], images=[picture, picture], px=64)
    drawing = processor(text=["a red circle", "a blue square"])
    how = {"ar_steps": 2, "diffusion_steps": "3", "clip_x0": 3.0, "width": 96, "height": 64, "seeds": [5, 6]}
    with torch.no_grad():
        tensors = {
            "pixel_values": asked["pixel_values"],
            "logits": model(**asked).logits,
            "encoded": model.vae.encode(asked["pixel_values"]),
            "latents": model.draw_latents(**drawing, **how),
            "drawn": model.draw(**drawing, **how),
        }
    said = model.answer(**asked, max_new_tokens=5, eos_ids=())
    model.save_pretrained(f"{out}-saved")  # a fine-tuned model must be able to be kept
    processor.save_pretrained(f"{out}-saved")
    again = AutoModel.from_pretrained(f"{out}-saved", trust_remote_code=True)
    processor.save_pretrained(f"{out}-processor")  # and a processor by itself
    reloaded = AutoProcessor.from_pretrained(f"{out}-processor", trust_remote_code=True)
    asked_again = reloaded(text=["What is this?", "Is it a long question?"], images=[picture, picture], px=64)
    alone = AutoTokenizer.from_pretrained(f"{out}-processor")
    ours = [name for name, one in sys.modules.items() if (getattr(one, "__file__", None) or "").startswith(root)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is this?"}], tokenize=False, add_generation_prompt=True
    )
    facts = {
        "report": {name: sorted(map(str, found)) for name, found in report.items()},
        "parameters": {name: str(value.dtype) for name, value in model.state_dict().items()},
        "saved_equal": all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())),
        "processor_equal": all(torch.equal(asked[name], asked_again[name]) for name in asked),
        "tokenizer_equal": alone("What is this?")["input_ids"]
        == AutoTokenizer.from_pretrained(folder)("What is this?")["input_ids"],
        "said": said,
        "texts": processor.batch_decode(said),
        "size": processor.to_pictures(tensors["drawn"])[0].size,
        "ours": [name for name in ours if name != "__main__"],
        "chat": chat,
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, f"{out}.safetensors")
    Path(f"{out}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
