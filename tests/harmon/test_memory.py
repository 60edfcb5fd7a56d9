"""The memory model against torch's own tracker, and the layouts that it chooses."""

import pytest
import torch
from tracked import tracked_peak

from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon, part_of
from harmon.training.forecast import A100, Device, choose_layout, forecast, step_flops
from harmon.training.memory import GIB, Lengths, micro_batch_memory, parameter_counts
from harmon.training.stage import PARTS, load_stage

SIZES = ("harmon-0.5b", "harmon-1.5b")
PEAKS = [  # model, stage, task, rows, bfloat16
    ("harmon-0.5b", "stage2", "image2text", 8, True),
    ("harmon-1.5b", "stage3", "text2image", 4, True),
    pytest.param("harmon-0.5b", "stage1", "text2image", 8, True, marks=pytest.mark.slow),  # the LLM is frozen
    pytest.param("harmon-0.5b", "stage2", "text2image", 8, True, marks=pytest.mark.slow),
    pytest.param("harmon-0.5b", "stage2", "text", 8, False, marks=pytest.mark.slow),
    pytest.param("harmon-0.5b", "finetune-o", "text2image", 8, True, marks=pytest.mark.slow),
    pytest.param("harmon-1.5b", "stage3", "image2text", 2, True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("size", "name", "task", "rows", "bf16"), PEAKS)
def test_the_model_is_within_a_tenth_of_torchs_tracker(size, name, task, rows, bf16):
    """The whole peak, and also what is not parameters, gradient and moments: those alone would be easy."""
    config, stage, lengths = HarmonConfig.preset(size), load_stage(name), Lengths()
    peak, beyond_state = tracked_peak(config, stage, task, rows, bf16=bf16, lengths=lengths)
    said = micro_batch_memory(config, stage, task, rows, bf16=bf16, lengths=lengths)
    assert said.peak == pytest.approx(peak, rel=0.1)
    assert said.peak - said.state == pytest.approx(beyond_state, rel=0.15)


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_counted_to_the_last_one(size):
    with torch.device("meta"):
        model = Harmon(HarmonConfig.preset(size))
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    assert parameter_counts(HarmonConfig.preset(size)) == counts


def test_a_picture_in_the_prompt_takes_memory_and_operations_of_seeing_it():
    stage, config = load_stage("stage4-reca"), HarmonConfig.preset("harmon-0.5b")
    plain, seen = (Lengths(picture=picture) for picture in (False, True))
    drawn, aligned = (micro_batch_memory(config, stage, "text2image", 4, lengths=one) for one in (plain, seen))
    understood = micro_batch_memory(config, stage, "image2text", 4)
    assert 0.6 * understood.activations < aligned.activations - drawn.activations < understood.activations
    assert step_flops(stage, config, seen) > 1.2 * step_flops(stage, config, plain)


def test_rows_add_activations_and_shards_divide_the_state():
    config, stage = HarmonConfig.preset("harmon-0.5b"), load_stage("stage2")
    one, two = (micro_batch_memory(config, stage, "text2image", rows) for rows in (1, 2))
    assert two.activations == 2 * one.activations and two.state == one.state
    sharded = micro_batch_memory(config, stage, "text2image", 1, shards=8)
    assert sharded.state == one.state / 8
    again = micro_batch_memory(config, stage, "text2image", 8, recompute="full")
    assert again.activations < 0.5 * micro_batch_memory(config, stage, "text2image", 8).activations


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
def test_the_papers_stages_fit_on_its_32_gpus(size, name):
    told = forecast(load_stage(name), HarmonConfig.preset(size), 32)
    assert told.layout.fits
    assert max(memory.needed for memory in told.memory.values()) <= A100.memory
    assert told.workers * told.layout.micro_rows <= load_stage(name).block_rows * 2


def test_a_smaller_gpu_gets_fewer_rows_then_recompute_then_shards_then_a_refusal():
    stage, config = load_stage("stage2"), HarmonConfig.preset("harmon-1.5b")
    layouts = [choose_layout(stage, config, 8, Device("made up", gib * GIB, 1e14)) for gib in (400, 80, 44, 30, 8)]
    assert layouts[0] == choose_layout(stage, config, 8, Device("larger", 900 * GIB, 1e14))
    assert layouts[0].parallel == "ddp" and layouts[0].recompute == "none"
    assert [layout.fits for layout in layouts] == [True, True, True, True, False]
    assert layouts[2].parallel == "fsdp"
    rows = [layout.micro_rows for layout in layouts]
    assert rows[0] > rows[-1]


def test_the_three_stages_cost_what_the_paper_implies():
    """6.1e20 and 2.11e21 FLOP over the three stages with the autoencoder on line; less from stored latents."""
    for size, most in zip(SIZES, (6.1e20, 2.11e21), strict=True):
        spent = sum(
            told.flops_per_step * told.steps
            for told in (
                forecast(load_stage(name), HarmonConfig.preset(size), 32) for name in ("stage1", "stage2", "stage3")
            )
        )
        assert 0.7 * most < spent < most
