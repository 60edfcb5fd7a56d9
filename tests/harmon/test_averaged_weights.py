"""Averaged weights of a training, named where a checkpoint is."""

import json
import shutil
from pathlib import Path

import benchmark_miniatures as mini
import pytest
from click.testing import CliRunner
from safetensors.torch import save_file
from small_checkpoints import make_run, tiny_model, weights

from flows.cli import main
from harmon.convert.released import Named
from harmon.evaluation.run import EvaluationConfig, evaluate_run, is_evaluated
from harmon.trained import load, open_checkpoint
from harmon.training.checkpoint import AVERAGE, MODEL
from pipelines.errors import ConfigurationError

CHECKPOINT = Path("train") / "stage1-aaaaaaaa" / "checkpoints" / "000010"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose one checkpoint has an average of its own."""
    run = make_run(tmp_path / "run")
    save_file(weights(tiny_model(), seed=5), run / CHECKPOINT / AVERAGE)
    return run


def test_a_run_opens_with_its_weights_or_where_asked_with_their_average(run, tmp_path):
    other = make_run(tmp_path / "other")
    shutil.copy(run / CHECKPOINT / AVERAGE, other / CHECKPOINT / MODEL)
    averaged = load(run, Named(average=True))
    assert averaged.fingerprint == load(other).fingerprint != load(run).fingerprint
    assert averaged.weights == (run / CHECKPOINT / AVERAGE,)


def test_what_has_no_average_says_so(run, tmp_path):
    with pytest.raises(ConfigurationError, match=r"000010 has no average of its weights: .*training\.average"):
        open_checkpoint(make_run(tmp_path / "plain"), Named(average=True))
    with pytest.raises(ConfigurationError, match="is no run folder, and only those keep an average"):
        open_checkpoint(tmp_path, Named(average=True))


def test_harmon_convert_writes_the_average(run, tmp_path):
    answer = CliRunner().invoke(main, ["convert", str(run), "--average", "-o", str(tmp_path / "hf")])
    assert answer.exit_code == 0, answer.output
    assert load(tmp_path / "hf").fingerprint == load(run, Named(average=True)).fingerprint != load(run).fingerprint


def test_an_evaluation_measures_the_weights_that_it_names_and_is_not_taken_for_the_others(run):
    few = {"held_out": 0, "seen": 0, "two": 0, "asked": 0}
    plain, averaged = EvaluationConfig(**few), EvaluationConfig(**few, average=True)
    evaluate_run(run, averaged)
    assert is_evaluated(run, averaged) and not is_evaluated(run, plain)


def test_harmon_evaluate_measures_the_average_and_compares_it_with_the_weights(run, tmp_path):
    (tmp_path / "gqa").mkdir()
    mini.gqa(tmp_path / "gqa")
    told = ["evaluate", run, "gqa", "--average", "--compare", run, "--data", tmp_path / "gqa", "--limit", 2]
    answer = CliRunner().invoke(main, [*map(str, told), "--max-new-tokens", "2", "-o", str(tmp_path / "out"), "--json"])
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    assert report["checkpoint"]["weights"] == load(run, Named(average=True)).fingerprint
    assert report["other_checkpoint"]["weights"] == load(run).fingerprint
    assert (report["checkpoint"]["average"], report["other_checkpoint"]["average"]) == (True, False)
    assert "run, averaged less" in Path(report["report"]).read_text()
