"""The memory model against torch's own tracker, and the layouts that it chooses; with HARMON_SOAK all its cases."""

import os

import pytest
import torch
from tracked import tracked_peak

from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon, part_of
from harmon.training.device import A100, DEVICES, GIB, Device
from harmon.training.execution import Execution
from harmon.training.forecast import Mix, choose_layout, forecast, resolved, step_flops
from harmon.training.memory import Lengths, micro_batch_memory
from harmon.training.parameters import parameter_counts, units
from harmon.training.stage import PARTS, load_stage
from pipelines.errors import ConfigurationError

SIZES = ("harmon-0.5b", "harmon-1.5b")
SOAK = pytest.mark.skipif(not os.environ.get("HARMON_SOAK"), reason="up to 160 s each: only with HARMON_SOAK=1")
PEAKS = [  # model, stage, task, rows, bfloat16
    ("harmon-1.5b", "stage3", "image2text", 2, True),
    pytest.param("harmon-0.5b", "stage2", "image2text", 8, True, marks=SOAK),
    pytest.param("harmon-1.5b", "stage3", "text2image", 4, True, marks=SOAK),
    pytest.param("harmon-0.5b", "stage1", "text2image", 8, True, marks=SOAK),  # the LLM is frozen
    pytest.param("harmon-0.5b", "stage2", "text2image", 8, True, marks=SOAK),
    pytest.param("harmon-0.5b", "stage2", "text", 8, False, marks=SOAK),
    pytest.param("harmon-0.5b", "finetune-o", "text2image", 8, True, marks=SOAK),
]
LAID_OUT = [  # model, stage, task, rows, shards, recompute
    pytest.param("harmon-0.5b", "stage2", "text2image", 8, 8, "none", marks=SOAK),
    pytest.param("harmon-0.5b", "stage2", "image2text", 8, 8, "none", marks=SOAK),
    pytest.param("harmon-0.5b", "stage2", "text2image", 8, 1, "full", marks=SOAK),
    pytest.param("harmon-0.5b", "stage2", "image2text", 8, 1, "selective", marks=SOAK),
    pytest.param("harmon-1.5b", "stage3", "text2image", 4, 8, "full", marks=SOAK),
    pytest.param("harmon-1.5b", "stage3", "image2text", 2, 8, "selective", marks=SOAK),
]


@pytest.mark.parametrize(("size", "name", "task", "rows", "bf16"), PEAKS)
def test_the_model_is_within_a_tenth_of_torchs_tracker(size, name, task, rows, bf16):
    """The whole peak, and also what is not parameters, gradient and moments: those alone would be easy."""
    config, stage, lengths = HarmonConfig.preset(size), load_stage(name), Lengths()
    peak, beyond_state = tracked_peak(config, stage, task, rows, bf16=bf16, lengths=lengths)
    said = micro_batch_memory(config, stage, task, rows, bf16=bf16, lengths=lengths)
    assert said.peak == pytest.approx(peak, rel=0.1)
    assert said.peak - said.state == pytest.approx(beyond_state, rel=0.15)


@pytest.mark.parametrize(("size", "name", "task", "rows", "shards", "recompute"), LAID_OUT)
def test_so_it_is_with_shards_and_with_recomputation(size, name, task, rows, shards, recompute):
    """The tracker runs FSDP2 itself, as one worker of a group in which the others are not there."""
    config, stage, how = HarmonConfig.preset(size), load_stage(name), {"shards": shards, "recompute": recompute}
    peak, _ = tracked_peak(config, stage, task, rows, bf16=True, lengths=Lengths(), **how)
    assert micro_batch_memory(config, stage, task, rows, **how).peak == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_counted_to_the_last_one(size):
    with torch.device("meta"):
        model = Harmon(HarmonConfig.preset(size))
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    assert parameter_counts(HarmonConfig.preset(size)) == counts
    unit = units(HarmonConfig.preset(size))

    def total(module: torch.nn.Module) -> int:
        return sum(value.numel() for value in module.parameters())

    assert unit.head == total(model.mar.diffloss) and unit.llm_layer == total(model.llm.model.layers[0])
    assert unit.encoder_block == total(model.mar.encoder_blocks[0]) and unit.table == total(model.llm.lm_head)


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
    assert sharded.state == one.state / 8 and sharded.gathered > 0 == one.gathered
    averaged = micro_batch_memory(config, stage, "text2image", 1, shards=8, average=True)
    assert averaged.state - sharded.state == averaged.gradient
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
    layouts = [choose_layout(stage, config, 8, Device("made up", gib * GIB, 1e14)) for gib in (900, 80, 44, 30, 8)]
    assert layouts[0] == choose_layout(stage, config, 8, Device("larger", 1800 * GIB, 1e14))
    assert layouts[0].parallel == "ddp" and layouts[0].recompute == "none"
    assert [layout.fits for layout in layouts] == [True, True, True, True, False]
    assert layouts[2].parallel == "fsdp"
    rows = [layout.micro_rows for layout in layouts]
    assert rows[0] > rows[-1]


def test_what_a_recipe_leaves_to_the_memory_model_is_what_runs():
    stage, config = load_stage("stage2"), HarmonConfig.preset("harmon-1.5b")
    for gpu, workers in (("A100-80G", 32), ("A100-40G", 8)):
        auto = Execution(parallel="auto", shard_workers=8, gpu=gpu, profile=(3, 4))
        run = resolved(auto, stage, config, workers)
        told, printed = forecast(stage, config, workers, auto), forecast(stage, config, workers, run)
        assert run.parallel != "auto" and run.profile == (3, 4)
        assert told.layout == printed.layout and told.memory == printed.memory
        assert (run.parallel, run.recompute, run.micro_rows) == (
            told.layout.parallel,
            told.layout.recompute,
            told.layout.micro_rows,
        )
    with pytest.raises(ConfigurationError, match="finds no layout that fits on 1 A100-40G"):
        resolved(Execution(parallel="auto", gpu="A100-40G"), load_stage("stage3"), config, 1)


def test_what_is_set_by_hand_is_forecast_as_set():
    stage, config = load_stage("stage2"), HarmonConfig.preset("harmon-0.5b")
    by_hand = Execution(parallel="hsdp", shard_workers=8, micro_rows=3, recompute="selective", gpu="H100-80G")
    assert resolved(by_hand, stage, config, 32) == by_hand
    told = forecast(stage, config, 32, by_hand, Mix(bf16=False))
    assert told.device == DEVICES["H100-80G"]
    assert (told.layout.parallel, told.layout.shards, told.layout.micro_rows) == ("hsdp", 8, 3)
    lines = "\n".join(told.lines())
    assert "hsdp over groups of 8, micro-batches of 3 rows, recompute selective, matrix products in float32" in lines
    one = told.memory["text2image"]
    assert one.casts == 0 and one.parameters == 4 * sum(parameter_counts(config).values()) / 8
    everything = forecast(stage, config, 1, Execution(gpu="A100-40G"))
    assert everything.layout.micro_rows == stage.block_rows and not everything.layout.fits
    assert "it does not fit" in next(everything.lines())


def test_memory_is_told_at_the_longest_texts_and_the_worst_mask():
    stage, config = load_stage("stage2"), HarmonConfig.preset("harmon-0.5b")
    told = forecast(stage, config, 32, Execution(micro_rows=4)).memory
    usual = {task: micro_batch_memory(config, stage, task, 4) for task in told}
    assert all(told[task].peak > usual[task].peak for task in ("text2image", "image2text"))
    assert told["image2text"].top > 3 * usual["image2text"].top  # 480 labelled tokens in place of 128


def test_auto_takes_no_layout_beside_it():
    with pytest.raises(ValueError, match="parallel: auto chooses micro_rows and recompute"):
        Execution(parallel="auto", micro_rows=4)


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
