"""vLLM's own batch engine, in the environment that has it: `python offline_worker.py CONFIGURATION`, which is JSON.

It knows nothing of this project. A line of JSON on stdin is a lot of questions; a line on stdout is their answers.
The first line on stdout says that it is ready. It ends when stdin does.
"""

import importlib
import json
import os
import sys
from typing import Any, TextIO


def main() -> None:
    """Answer lots until stdin ends."""
    out = os.fdopen(os.dup(1), "w")  # what vLLM and its processes print goes to stderr
    os.dup2(2, 1)
    vllm: Any = importlib.import_module("vllm")
    configuration = json.loads(sys.argv[1])
    model = vllm.LLM(**configuration)
    _say(out, {"version": f"vllm {vllm.__version__} offline"})
    for line in sys.stdin:
        lot = json.loads(line)
        fits = [_fits(model, question, configuration["max_model_len"]) for question in lot]
        asked = [question for question, fit in zip(lot, fits, strict=True) if fit]
        sampling = [vllm.SamplingParams(**question["sampling"]) for question in asked]
        # one that does not fit would end the whole lot, so it is left out before
        outputs = iter(model.chat([q["messages"] for q in asked], sampling, use_tqdm=False) if asked else ())
        _say(out, [_answer(next(outputs)) if fit else {"refusal": "prompt_too_long"} for fit in fits])


def _fits(model: Any, question: dict[str, Any], most: int) -> bool:
    """Whether prompt and answer fit; of an image only its mark is counted, since the prompt file bounds its tokens."""
    prompt = model.get_tokenizer().apply_chat_template(
        question["messages"], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return len(prompt) + int(question["sampling"]["max_tokens"]) <= most


def _answer(output: Any) -> dict[str, Any]:
    written = output.outputs[0]
    return {
        "text": written.text,
        "finish_reason": written.finish_reason,
        "tokens_in": len(output.prompt_token_ids),
        "tokens_out": len(written.token_ids),
    }


def _say(out: TextIO, what: object) -> None:
    out.write(json.dumps(what) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
