"""The model card of a Hugging Face folder: only what is known from the checkpoint itself."""

from harmon.convert.contents import Contents
from harmon.convert.released import PUBLISHED
from harmon.model.autoencoder import KlConfig
from harmon.model.config import HarmonConfig

_CARD = """---
library_name: transformers
pipeline_tag: any-to-any
tags: [harmon, text-to-image, image-to-text]
---

# Harmon{name}

A Harmon model ([arXiv 2503.21979](https://arxiv.org/abs/2503.21979)): one masked autoregressive encoder that
sees and draws, with a Qwen2.5 language model between its halves. Written by `harmon convert`.

| part | sizes |
|---|---|
| language model | width {llm.hidden_size}, {llm.num_hidden_layers} layers, {llm.vocab_size} tokens |
| MAR encoder | width {mar.encoder_width}, {mar.encoder_depth} blocks |
| MAR decoder | width {mar.decoder_width}, {mar.decoder_depth} blocks |
| diffusion head | width {head.width}, {head.depth} blocks |
| parameters | {parameters:,} and {latent:,} of the autoencoder |
| autoencoder | {autoencoder} |
| pictures | {px} px unless asked otherwise |

{notes}
## Use

    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)

    drawn = model.draw(**processor(text="a red circle"), seeds=[0])
    processor.to_pictures(drawn)[0].save("circle.png")

    asked = processor(text="What is this?", images=Image.open("circle.png"))
    print(processor.batch_decode(model.answer(**asked, eos_ids=(processor.text.eos,)))[0])

The code beside this file needs torch, transformers, tokenizers, pydantic, PyYAML, safetensors, numpy and Pillow.

## Licence

That of the weights this folder was made from: Qwen2.5, MAR and Harmon's release each have their own.
"""


def model_card(contents: Contents) -> str:
    """README.md of the folder."""
    config = contents.config
    name = next((f" ({name})" for name in PUBLISHED if HarmonConfig.preset(name) == config), "")
    stand_in = not isinstance(contents.autoencoder, KlConfig)
    notes = "" if contents.step == 0 else f"Trained here: stage {contents.stage}, step {contents.step}.\n"
    if stand_in:
        notes += "\n**Its autoencoder is a stand-in for KL-16**: a fixed linear map of patches, for demonstrations.\n"
    if contents.sampling:
        notes += f"\nIts pictures are drawn otherwise than the paper's: {dict(contents.sampling)}.\n"
    return _CARD.format(
        name=name,
        llm=config.llm,
        mar=config.mar,
        head=config.head,
        parameters=sum(value.numel() for value in contents.tensors.values()),
        latent=sum(value.numel() for value in contents.autoencoder_tensors.values()),
        autoencoder="patch latent, a stand-in" if stand_in else "KL-16",
        px=contents.px,
        notes=notes,
    )
