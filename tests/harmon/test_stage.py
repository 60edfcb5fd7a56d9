import pytest

from harmon.training.mixture import blocks_of_step
from harmon.training.optimiser import rate_factor
from harmon.training.stage import TASKS, Departure, departures, load_stage
from pipelines.errors import ConfigurationError

TABLE_1 = {  # paper Table 1; rates in the order encoder, decoder, LLM
    "stage1": ((1e-5, 1e-4, None), 256, 4096, (0, 1, 2), 50_000),
    "stage2": ((1e-5, 1e-4, 1e-5), 256, 4096, (1, 3, 8), 50_000),
    "stage3": ((2e-6, 2e-5, 2e-6), 512, 1024, (1, 3, 16), 50_000),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_stage_files_are_the_papers_table_1(name: str):
    rates, px, batch, ratio, steps = TABLE_1[name]
    stage = load_stage(name)
    assert tuple(stage.learning_rate.model_dump().values()) == rates
    assert (stage.px, stage.global_batch, stage.steps) == (px, batch, steps)
    assert tuple(stage.ratio.model_dump().values()) == ratio
    assert (stage.betas, stage.weight_decay, stage.clip_norm) == ((0.9, 0.95), 0.02, 1.0)
    assert stage.full_mask_share == 0


@pytest.mark.parametrize("name", TABLE_1)
def test_task_counts_stay_within_one_block_of_the_exact_share_over_1500_steps(name: str):
    stage = load_stage(name)
    ratio = [stage.ratio.of(task) for task in TASKS]
    counts = dict.fromkeys(TASKS, 0)
    for step in range(1500):
        for block in blocks_of_step(stage, step):
            assert block.start == counts[block.task]
            counts[block.task] += block.rows
        drawn = (step + 1) * stage.global_batch
        for task, share in zip(TASKS, ratio, strict=True):
            assert abs(counts[task] - drawn * share / sum(ratio)) < stage.block_rows
        if (step + 1) % {"stage1": 3, "stage2": 3, "stage3": 5}[name] == 0:
            assert all(counts[task] * sum(ratio) == drawn * share for task, share in zip(TASKS, ratio, strict=True))


def test_rate_warms_up_over_one_percent_and_falls_as_a_cosine():
    stage = load_stage("stage1")
    assert rate_factor(stage, 0) == 1e-5
    assert rate_factor(stage, 250) == pytest.approx(0.5, abs=1e-4)
    assert rate_factor(stage, 500) == 1
    assert rate_factor(stage, 25_250) == pytest.approx(0.5)
    assert rate_factor(stage, 49_999) < 1e-8


def test_departures_name_what_differs_from_the_paper():
    here = load_stage("stage2", {"px": 64, "learning_rate": {"llm": 1e-3}, "seed": 7})
    assert departures(here, load_stage("stage2")) == [
        Departure("learning_rate.llm", 1e-5, 1e-3),
        Departure("px", 256, 64),
    ]


def test_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(ConfigurationError, match=r"unknown key 'learning_rate\.decodr'; did you mean 'decoder'"):
        load_stage("stage1", {"learning_rate": {"decodr": 1e-4}})


def test_blocks_have_to_fill_the_batch():
    with pytest.raises(ConfigurationError, match="block_rows 512 must divide global_batch 100"):
        load_stage("stage1", {"global_batch": 100})


@pytest.mark.parametrize(
    ("task", "rates", "missing"),
    [
        ("text", {"encoder": 1e-4, "decoder": 1e-4, "llm": None}, "llm"),
        ("image2text", {"encoder": None, "decoder": 1e-4, "llm": None}, "encoder or llm"),
    ],
)
def test_a_task_of_which_nothing_could_learn_has_no_share(task: str, rates: dict, missing: str):
    none = {"text": 0, "image2text": 0, "text2image": 1}
    load_stage("stage2", {"learning_rate": rates, "ratio": none})
    with pytest.raises(ConfigurationError, match=f"ratio gives {task} a share, .* give {missing} a learning_rate"):
        load_stage("stage2", {"learning_rate": rates, "ratio": none | {task: 1}})
