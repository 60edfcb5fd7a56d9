"""The replay of recorded outputs: on the reference data, and on data recorded here at other sizes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_model import ODD, VOCABULARY, odd_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from harmon.answering import AnswerConfig, answer
from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.harmon import has_weight_decay
from harmon.parity import __main__ as parity
from harmon.parity import golden
from harmon.parity.golden import Line
from harmon.sampling import plan
from tests.parts import need_shared

SHAPES = {"native": [4, 4], "wide": [2, 5]}
SAMPLES: dict[str, dict[str, Any]] = {
    "guided": {"shape": "wide", "cfg": 2.0, "num_iter": 4, "temperature": 0.8, "cfg_schedule": "linear"},
    "plain": {"shape": "native", "cfg": 1.0, "num_iter": 18, "temperature": 1.0, "cfg_schedule": "constant"},
}
AUTOENCODER = KlConfig(base_channels=32, channel_multipliers=(1, 1, 1, 1, 2), res_blocks=1, latent_channels=8)
PLACEHOLDER = -7
CHAIN = 9  # "4,3,2"
GRADIENT_NORMS = ("t2i.grad_norms", "i2t.grad_norms", "i2t.grad_norms_without_scaling", "textonly.grad_norms")


def configuration(patch: int) -> dict[str, Any]:
    mar = ODD.mar
    return {
        "vae_scale": AUTOENCODER.scale,
        "grad_scale": 0.2,
        "llm": ODD.llm.model_dump(),
        "mar": {
            "img_size": 64 * patch,
            "vae_stride": 16,
            "patch_size": patch,
            "vae_embed_dim": 8,
            **{
                f"{part}_{theirs}": getattr(mar, f"{part}_{ours}")
                for part in ("encoder", "decoder")
                for ours, theirs in (("width", "embed_dim"), ("depth", "depth"), ("heads", "num_heads"))
            },
            "mlp_ratio": 4,
            "class_num": mar.class_count,
            "buffer_size": mar.buffer_size,
            "diffloss_d": ODD.head.depth,
            "diffloss_w": ODD.head.width,
            "num_sampling_steps": "4, 3, 2",
            "diffusion_batch_mul": ODD.head.batch_mul,
            "mask_ratio_min": 0.7,
            "attn_dropout": 0.1,
            "proj_dropout": 0.1,
        },
        "vae": {"embed_dim": 8, "ch": 32, "ch_mult": [1, 1, 1, 1, 2], "num_res_blocks": 1},
        "shapes": SHAPES,
        "samples": SAMPLES,
    }


def inputs(patch: int) -> dict[str, Tensor]:
    """Inputs and draws, every output name with a placeholder."""
    torch.manual_seed(0)
    channels, unit = 8 * patch**2, 16 * patch
    tensors: dict[str, Tensor] = {}
    lengths = torch.tensor([5, 3, 4])
    tensors["in.text.input_ids"] = torch.randint(VOCABULARY, (3, 5))
    tensors["in.text.attention_mask"] = torch.arange(5) < lengths.unsqueeze(1)
    for shape, (height, width) in SHAPES.items():
        order = torch.stack([torch.randperm(height * width) for _ in range(2)])
        tensors[f"in.vae.{shape}.pixels"] = torch.rand(1, 3, unit * height, unit * width) * 2 - 1
        tensors[f"in.vis.{shape}.latents"] = torch.randn(2, height, width, channels)
        tensors[f"in.vis.{shape}.mask"] = torch.zeros(2, height * width).scatter(1, order[:, :7], 1.0)
    sizes = {"z": (6, 40), "target": (6, channels), "noise": (6, channels), "net_x": (6, channels)}
    tensors |= {f"in.diffloss.{name}": torch.randn(size) for name, size in sizes.items()}
    tensors["in.diffloss.mask"] = torch.tensor([1.0, 0, 1, 1, 0, 1])
    tensors["in.diffloss.t"] = torch.tensor([0, 1, 50, 400, 998, 999])
    sizes = {"x": (CHAIN, 4, channels), "z": (4, 40), "noise": (CHAIN, 4, channels)}
    tensors |= {f"in.pstep.{name}": torch.randn(size) for name, size in sizes.items()}
    tensors["in.t2i.pixel_values"] = torch.rand(3, 3, 4 * unit, 4 * unit) * 2 - 1
    tensors["draw.t2i.000.order"] = torch.stack([torch.randperm(16) for _ in range(3)])
    tensors["draw.t2i.001.mask_rate"] = torch.tensor([0.81], dtype=torch.float64)
    tensors["draw.t2i.002.randint"] = torch.randint(1000, (3 * 48,))
    tensors["draw.t2i.003.randn_like"] = torch.randn(3 * 48, channels)
    slots = torch.full((1, 16 + ODD.mar.buffer_size), PLACEHOLDER)
    prompt = torch.cat([torch.randint(VOCABULARY, (1, 2)), slots, torch.randint(VOCABULARY, (1, 6))], 1)
    for run, ids in (("i2t", prompt.repeat(2, 1)), ("textonly", torch.randint(VOCABULARY, (2, 9)))):
        tensors[f"in.{run}.input_ids"] = ids
        tensors[f"in.{run}.labels"] = ids.clone().index_fill(1, torch.arange(ids.shape[1] - 3), -100)
    tensors["in.i2t.pixel_values"] = torch.rand(2, 3, 4 * unit, 4 * unit) * 2 - 1
    tensors["in.answer.input_ids"] = prompt
    tensors["in.answer.pixel_values"] = torch.rand(1, 3, 4 * unit, 4 * unit) * 2 - 1
    for name in (
        "diffloss.net_out_cfg2.5",
        "pstep.out_cfg1.5",
        "schedule.gen.betas",
        "i2t.grad.mar.fake_latent",
    ):
        tensors[f"out.{name}"] = torch.zeros(())
    for run in SAMPLES:
        tensors |= sampling_inputs(run, channels)
    return tensors


def sampling_inputs(run: str, channels: int) -> dict[str, Tensor]:
    settings = SAMPLES[run]
    height, width = SHAPES[settings["shape"]]
    images, rows = 2, 2 if settings["cfg"] == 1 else 4
    tensors = {
        f"in.sample.{run}.input_ids": torch.randint(VOCABULARY, (rows, 6)),
        f"in.sample.{run}.attention_mask": torch.arange(6) < torch.tensor([6, 4, 5, 5][:rows]).unsqueeze(1),
        f"draw.sample.{run}.000.order": torch.stack([torch.randperm(height * width) for _ in range(rows)]),
    }
    count = 1
    for turn in plan(height * width, settings["num_iter"], settings["cfg"], settings["cfg_schedule"]):
        drawn = turn.masked - turn.masked_next
        tensors[f"draw.sample.{run}.{count:03}.randn"] = torch.randn(images * drawn, channels)
        for step in range(CHAIN):
            tensors[f"draw.sample.{run}.{count + 1 + step:03}.randn_like"] = torch.randn(rows * drawn, channels)
        count += 1 + CHAIN
    return tensors


@pytest.fixture(scope="module", params=[1, 2], ids=["tokens of one latent", "tokens of four, weights in bfloat16"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Golden data of our own at odd sizes: what the replay computes becomes what it must compute."""
    folder, patch = tmp_path_factory.mktemp("golden"), request.param
    config = ODD.model_copy(update={"mar": ODD.mar.model_copy(update={"patch_size": patch})})
    model, tensors = odd_model(config=config), inputs(patch)
    state = {key: value for key, value in model.state_dict().items() if key != "llm.lm_head.weight"}
    if patch == 2:
        state = {key: value.bfloat16() for key, value in state.items()}
    save_file(state, folder / "harmon.safetensors")
    torch.manual_seed(1)
    autoencoder = {key: value.bfloat16() for key, value in KlAutoencoder(AUTOENCODER).state_dict().items()}
    save_file(autoencoder, folder / "kl16.safetensors")
    decay: dict[str, list[str]] = {"decay": [], "no_decay": []}
    for name, parameter in model.named_parameters():
        decay["decay" if has_weight_decay(name, parameter) else "no_decay"].append(name)
    kinds = ("non_sampling_rel", "sampling_teacher_forced_iteration_rel", "sampling_end_to_end_rel")
    case = {"repeat": [1, 2], "batch_size": 2, "sizes": [3, 4], "rank": 1, "world_size": 2, "seed": 1}
    manifest = {
        "config": configuration(patch),
        "image_token_index": PLACEHOLDER,
        "scalars": {name: {} for name in GRADIENT_NORMS},
        "weight_decay_groups": decay,
        "multi_source_sampler_cases": [{**case, "shuffle": False, "indices": [1, 0, 4, 6, 4, 6, 2, 1]}],
        "tensors": {"in.pstep.x": {"meaning": "one step, temperature 0.7; guided"}},
        "tolerances": dict.fromkeys(kinds, 1e-4),
    }
    write(folder, manifest, tensors)
    write(folder, manifest, record(folder, manifest))
    return folder


def write(folder: Path, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))
    save_file(tensors, folder / "golden.safetensors")


def record(folder: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    """Run the replay once and keep all that it compares: tensors returned, scalars put into the manifest."""
    scalars = (
        "gen_timestep_map",
        "mask_rate",
        "num_masked",
        "latent_absmax",
        "draw_ranges",
        "min_top2_margin",
    )

    class Recorder(golden.Golden):
        def line(self, name: str, got: Tensor | float, kind: str = "", scale: float | None = None) -> Line:
            value = torch.as_tensor(got).detach()
            if name.endswith(scalars):
                manifest["scalars"][name] = value.tolist()
            else:
                self.tensors[f"out.{name}"] = value.clone(memory_format=torch.contiguous_format)
            return Line(name, 0.0, 0.0)

    data = Recorder(folder)
    picture, prompt = data.encoded("in.answer.pixel_values"), data.ids("in.answer.input_ids")
    said = answer(data.model, picture, prompt, config=AnswerConfig(max_new_tokens=4), eos_ids=())
    data.tensors["out.answer.tokens"] = torch.tensor(said)
    for line in parity.replay(data):
        if "grad_norms" in line.name:
            gradients = {name: parameter.grad for name, parameter in data.model.named_parameters()}
            manifest["scalars"][line.name] = {
                name: gradient.norm().item() for name, gradient in gradients.items() if gradient is not None
            }
    return data.tensors


def test_reference_outputs_are_replayed_within_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    folder = need_shared("reference/goldens")
    assert parity.main([str(folder)]) == 0, capsys.readouterr().out
    assert len(capsys.readouterr().out.splitlines()) > 150


def test_reference_outputs_are_replayed_with_half_precision_weights_within_its_bounds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = need_shared("reference/goldens")
    assert parity.main([str(folder), "--bf16"]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 150
    bounds = {name.strip(): float(bound) for name, _, bound, _ in (line.rsplit(maxsplit=3) for line in lines[:-1])}
    features = {name: bound for name, bound in bounds.items() if re.fullmatch(r"sample\..*\.it\d+\.(x_enc|z)", name)}
    assert len(features) > 10 and max(features.values()) < 0.3  # of one pass, and not the diffusion's loose bound


@pytest.mark.skipif(not os.environ.get("HARMON_SOAK"), reason="compiles for 2 minutes: only with HARMON_SOAK=1")
def test_reference_outputs_are_replayed_with_compiled_regions_within_tolerance() -> None:
    folder = need_shared("reference/goldens")
    command = [sys.executable, "-m", "harmon.parity", str(folder), "--compile"]  # alone: what others compiled counts
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 150


def test_recordings_of_other_sizes_are_replayed_too(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(recorded)]) == 0, capsys.readouterr().out


def test_recordings_are_replayed_with_half_precision_weights_within_looser_bounds(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity.main([str(recorded), "--bf16"]) == 0, capsys.readouterr().out
    assert len(capsys.readouterr().out.splitlines()) > 60


def test_different_outputs_and_outputs_that_nothing_replays_fail_by_name(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("manifest.json", "harmon.safetensors", "kl16.safetensors"):
        (tmp_path / name).symlink_to(recorded / name)
    tensors = load_file(recorded / "golden.safetensors")
    changed = {"vae.wide.latents", "sample.guided.final_latents", "i2t.grad.mar.fake_latent"}
    tensors |= {f"out.{name}": tensors[f"out.{name}"] * 1.001 for name in changed}
    save_file(tensors | {"out.surprise": torch.zeros(1)}, tmp_path / "golden.safetensors")
    assert parity.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert changed | {"surprise"} <= {line.split()[0] for line in lines if line.endswith("ABOVE")}


def test_data_that_lack_an_output_are_refused_by_its_name(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("manifest.json", "harmon.safetensors", "kl16.safetensors"):
        (tmp_path / name).symlink_to(recorded / name)
    tensors = load_file(recorded / "golden.safetensors")
    del tensors["out.vae.wide.decoded"]
    save_file(tensors, tmp_path / "golden.safetensors")
    assert parity.main([str(tmp_path)]) == 3
    assert "lacks out.vae.wide.decoded" in capsys.readouterr().err


def test_a_folder_without_golden_data_cannot_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(tmp_path)]) == 3
    assert "holds no golden data" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "passed"), [(1e-6, True), (1e-5, True), (1.1e-5, False), (float("nan"), False)])
def test_a_line_passes_up_to_its_tolerance_and_never_without_a_number(error: float, passed: bool) -> None:
    assert Line("x", error, 1e-5).passed is passed
