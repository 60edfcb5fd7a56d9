"""Makes the demo's stand-ins for VQGAN and SigLIP, which the ablations of demo size see with in MAR's place.

`python -m harmon.parts.make_seeing` writes harmon/parts/demo/vqgan.safetensors and siglip.safetensors. Nothing is
trained by gradients: the VQGAN is the demo's KL-16 encoder behind a codebook of k-means over its latents of scenes, and
the SigLIP an image tower with random weights, which is a floor for any trained one.
"""

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from harmon.latents import load_autoencoder
from harmon.model.autoencoder import KlAutoencoder
from harmon.model.vqgan import Vqgan, VqganConfig
from harmon.parts.fidelity import pixels
from harmon.tower import Tower
from pipelines.scenes import make_scene

DEMO = Path(__file__).parent / "demo"
SEED = 3
SIDES = (64, 128)
SCENES = 80
CODES = 256
ROUNDS = 12  # of k-means
LAYOUT = {  # open_clip's; 4 x 4 patches, as many positions as the demo's MAR has at 64 px
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
}


def quantised(autoencoder: KlAutoencoder) -> Vqgan:
    """The encoder of `autoencoder`, its mode without the scale, behind a codebook fitted to scenes."""
    sizes, width = autoencoder.config, autoencoder.channels
    config = VqganConfig(
        base_channels=sizes.base_channels,
        channel_multipliers=sizes.channel_multipliers,
        res_blocks=sizes.res_blocks,
        encoder_channels=2 * width,
        code_width=width,
        codes=CODES,
    )
    model = Vqgan(config, "vqgan (stand-in: k-means over the demo's KL-16)").requires_grad_(False).eval()
    model.encoder.load_state_dict(autoencoder.encoder.state_dict())
    model.quant_conv.load_state_dict({name: part[:width] for name, part in autoencoder.quant_conv.state_dict().items()})
    scenes = [make_scene(SEED, index) for index in range(SCENES)]
    found = [autoencoder.encode(pixels(scenes, side)) / sizes.scale for side in SIDES]
    model.quantize.embedding.weight.copy_(
        codebook(torch.cat([one.permute(0, 2, 3, 1).reshape(-1, width) for one in found]))
    )
    return model


def codebook(vectors_nC: Tensor) -> Tensor:
    """CODES means [K, C] of `vectors_nC` by Lloyd's rounds from drawn vectors; a code that is nobody's stays."""
    generator = torch.Generator().manual_seed(SEED)
    codes_KC = vectors_nC[torch.randperm(len(vectors_nC), generator=generator)[:CODES]].clone()
    for _ in range(ROUNDS):
        nearest_n = torch.cdist(vectors_nC, codes_KC).argmin(1)
        counts_K = torch.bincount(nearest_n, minlength=CODES)
        sums_KC = torch.zeros_like(codes_KC).index_add(0, nearest_n, vectors_nC)
        codes_KC = torch.where(counts_K.unsqueeze(1) > 0, sums_KC / counts_K.clamp(min=1).unsqueeze(1), codes_KC)
    return codes_KC


def main() -> None:
    autoencoder = load_autoencoder(DEMO / "kl.safetensors").eval().requires_grad_(False)
    assert isinstance(autoencoder, KlAutoencoder)
    quantised(autoencoder).save(DEMO / "vqgan.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        layout = Path(folder) / "siglip-stand-in.json"
        layout.write_text(json.dumps(LAYOUT))
        Tower.named(str(layout), None, SEED).save(DEMO / "siglip.safetensors")


if __name__ == "__main__":
    main()
