"""Files of frozen encoders that see in MAR's place: python -m harmon.seeing vqgan|siglip WEIGHTS FILE

    python -m harmon.seeing vqgan last.ckpt data/vqgan.safetensors       taming-transformers' f16 with 16,384 codes
    python -m harmon.seeing siglip open_clip_model.safetensors data/siglip.safetensors --network ViT-B-16-SigLIP-256

What they hold is what Tables 6 and Figure 6 of the paper put beside MAR's encoder; recipes name them under
`training.understanding`, and `harmon latents` makes their maps of a dataset's pictures.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harmon.convert.autoencoders import count_numbered
from harmon.convert.pickles import read_pickle, tensors_of
from harmon.model.vqgan import Vqgan, VqganConfig
from harmon.tower import Tower
from pipelines.errors import HarmonError

ARRAYS = ("encoder.", "quant_conv.", "quantize.embedding.")
"""What of the published checkpoint sees; the rest (decoder, discriminator, perceptual loss) is left out."""


def read_vqgan(file: Path) -> Vqgan:
    """The VQGAN in taming-transformers' checkpoint: weights in its entry `state_dict`.

    Raises:
        HarmonError: the file is damaged, would run code, or holds no VQGAN.
    """
    held = read_pickle(file)
    if "state_dict" not in held:
        raise HarmonError(f"{file} has no entry 'state_dict'; name the checkpoint of a VQGAN.")
    state = {
        name: value
        for name, value in tensors_of(held["state_dict"], f"{file}['state_dict']").items()
        if name.startswith(ARRAYS)
    }
    with torch.device("meta"):
        own = Vqgan(vqgan_sizes(state, file)).state_dict()
    wrong = [name for name in {**own, **state} if name not in own or name not in state]
    wrong += [name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        raise HarmonError(f"{file} does not hold the VQGAN that its sizes say: {', '.join(sorted(set(wrong))[:5])}.")
    model = Vqgan(vqgan_sizes(state, file))
    model.load_state_dict(state)
    return model


def vqgan_sizes(tensors: Mapping[str, Tensor], where: object) -> VqganConfig:
    """Sizes of a VQGAN from the shapes under the published names. Raises HarmonError where one that tells is absent."""
    try:
        base = tensors["encoder.conv_in.weight"].shape[0]
        levels = count_numbered(tensors, r"encoder\.down\.(\d+)\.")
        widths = [tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
        codes, width = tensors["quantize.embedding.weight"].shape
        channels = tensors["quant_conv.weight"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise HarmonError(f"{where} holds no VQGAN: it lacks {error}.") from None
    return VqganConfig(
        base_channels=base,
        channel_multipliers=tuple(wide // base for wide in widths),
        res_blocks=count_numbered(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        encoder_channels=channels,
        code_width=width,
        codes=codes,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m harmon.seeing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=("vqgan", "siglip"))
    parser.add_argument("weights", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--network", default="ViT-B-16-SigLIP-256", help="open_clip's name of the network in WEIGHTS")
    given = parser.parse_args(arguments)
    encoder: Vqgan | Tower
    encoder = read_vqgan(given.weights) if given.kind == "vqgan" else Tower.named(given.network, given.weights)
    encoder.save(given.file)
    print(f"{given.file}: {encoder.name}, {encoder.channels} values a position")


if __name__ == "__main__":
    try:
        main()
    except HarmonError as error:
        raise SystemExit(f"harmon.seeing: {error}") from None
