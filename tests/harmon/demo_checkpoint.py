"""The demo's parts, untrained together, as a run folder: the demo's sizes and vocabulary, in a second."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from harmon.convert.contents import HEAD
from harmon.convert.released import model_sizes
from harmon.model.harmon import Harmon
from harmon.trained import RunDescription, TrainedStage, describe_run
from harmon.training.weights import load_weights

PARTS = Path(__file__).parents[2] / "harmon" / "parts" / "demo"


def make_demo(folder: Path, px: int = 128) -> Path:
    """Sampling is the demo's, with fewer diffusion steps."""
    config = model_sizes(str(PARTS / "harmon.yaml"))
    torch.manual_seed(0)
    model = Harmon(config)
    load_weights(model, [PARTS / "qwen" / "model.safetensors", PARTS / "mar.safetensors"])
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name != HEAD}
    checkpoint = folder / "train" / "stage3-demo0000" / "checkpoints" / "000001"
    checkpoint.mkdir(parents=True)
    save_file(state, checkpoint / "model.safetensors")
    described = RunDescription(
        model=config,
        stages=(TrainedStage(folder="stage3-demo0000", px=px),),
        sampling={"ar_steps": 8, "diffusion_steps": "10", "clip_x0": 9.0},
    )
    describe_run(folder, described, PARTS / "qwen", PARTS / "patch_latent.safetensors")
    return folder
