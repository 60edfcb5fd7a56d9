"""`harmon evaluate CHECKPOINT BENCHMARK...`: from schema-exact miniatures to a report, killed and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import benchmark_miniatures as mini
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from small_checkpoints import make_run, weights

from flows.cli import main
from harmon.evaluation import asked, drawings
from harmon.evaluation.question import Question
from pipelines.audit import audit
from pipelines.dataset import Dataset

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
SHORT = ("--max-new-tokens", 3)
QUICK = ("--sampling", "ar_steps=1", "--sampling", "diffusion_steps=2", "--px", 32)
ITEMS = 100  # of the runs that are killed
QUESTIONS: dict[str, tuple[Callable[[Path], None], int]] = {  # and items that a limit of 3 leaves
    "pope": (mini.pope, 3),
    "mme": (mini.mme_published, 4),
    "mmbench": (mini.mmbench, 4),
    "seed": (mini.seed, 3),
    "gqa": (mini.gqa, 3),
    "mmmu": (mini.mmmu, 3),
    "mmmu-pro": (mini.mmmu_pro, 3),
    "mmstar": (mini.mmstar, 3),
    "ai2d": (mini.ai2d, 3),
    "ocrbench": (mini.ocr, 3),
}
PROMPTS: dict[str, tuple[Callable[[Path], None], int]] = {  # and pictures that a limit of 2 leaves
    "geneval": (mini.geneval_file, 8),
    "wise": (mini.wise_files, 2),
    "dpg": (mini.dpg, 8),
    "mjhq": (mini.mjhq, 2),
    "mscoco": (mini.coco, 2),
}


def harmon(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files of every benchmark, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("data")
    for name, (make, _) in {**QUESTIONS, **PROMPTS}.items():
        (folder / name).mkdir()
        make(folder / name)
    return folder


@pytest.fixture(scope="module")
def asked_all(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("asked")
    done = harmon("evaluate", run, *QUESTIONS, "--data", data, "--limit", 3, "-o", out, *SHORT, "--json")
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout)


@pytest.fixture(scope="module")
def drawn_all(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("drawn")
    return out, harmon(
        "evaluate", run, *PROMPTS, "--data", data, "--limit", 2, "-o", out, *QUICK, "--export", out / "trees", "--json"
    )


def test_every_benchmark_of_questions_comes_to_numbers(asked_all: tuple[Path, dict[str, Any]]) -> None:
    out, told = asked_all
    assert told == json.loads((out / "report.json").read_text()) | {"report": str(out / "report.html")}
    assert len(told["benchmarks"]) == len(QUESTIONS)
    for one, (_, items) in zip(told["benchmarks"], QUESTIONS.values(), strict=True):
        assert one["items"] == items and one["partial"] and one["refused"] is None
        first = one["numbers"][0]
        assert first["value"] is not None and first["within"] is None  # a part is compared with nothing
        assert any("A part: the first" in sentence for sentence in one["differs"])
        assert one["examples"][0]["raw"] is not None
        assert audit(Dataset(one["dataset"])).sound


def test_answers_are_kept_as_a_dataset_with_what_was_asked_and_read(asked_all: tuple[Path, dict[str, Any]]) -> None:
    _, told = asked_all
    pope = next(one for one in told["benchmarks"] if one["benchmark"] == "pope")
    dataset = Dataset(pope["dataset"])
    assert [group.partition("-")[0] for group in dataset.groups()] == [
        "answer", "answer.telemetry", "score.lmms", "score.official", "score.vlmevalkit", "source",
    ]  # fmt: skip
    rows = asked.answered_rows(dataset)
    assert [row.item for row in rows] == ["random/1", "random/2", "random/3"]
    assert rows[0].prompt.endswith("Answer the question using a single word or phrase.")
    marks = dataset.whole_table(next(g for g in dataset.groups() if g.startswith("score.official"))).to_pylist()
    assert [mark["score"] for mark in marks] == [float(m["parsed"] == r.gold[0]) for m, r in zip(marks, rows)]
    how = dataset.commits()[0].configuration
    assert how["answers"] == {"max_new_tokens": 3, "temperature": 0.0, "top_p": 1.0}
    assert how["checkpoint"]["weights"] == told["checkpoint"]["weights"]


def test_the_page_shows_numbers_the_papers_and_what_differs(asked_all: tuple[Path, dict[str, Any]]) -> None:
    page = (asked_all[0] / "report.html").read_text()
    for words in ("Harmon-0.5B", "87.6", "neither published size", "A part", "not compared", "the random split alone",
                  "the model was shown the first of each", "Every reading"):  # fmt: skip
        assert words in page, words
    assert "http://" not in page and "https://" not in page


def test_pictures_are_kept_where_nobody_can_examine_them_and_the_report_says_what_would(
    drawn_all: tuple[Path, Result],
) -> None:
    out, done = drawn_all
    assert done.exit_code == 3 and "There is no number of geneval, wise-legacy" in done.stderr
    told = json.loads(done.stdout)
    for one, (_, pictures) in zip(told["benchmarks"], PROMPTS.values(), strict=True):
        assert one["numbers"] == [] and one["missing"]["remedy"]
        dataset = Dataset(one["dataset"])
        assert dataset.total_rows == pictures and audit(dataset, deep=True).sound
    page = (out / "report.html").read_text()
    assert "GenEval&#x27;s detector is missing" in page and "--examine results=FILE" in page


def test_pictures_are_written_as_the_official_evaluations_read_them(drawn_all: tuple[Path, Result]) -> None:
    trees = drawn_all[0] / "trees"
    found = {str(path.relative_to(trees)) for path in trees.rglob("*") if path.is_file()}
    assert {"geneval/00001/metadata.jsonl", "geneval/00001/samples/0003.png", "wise-legacy/2.png"} <= found
    assert {"dpg-bench/item1.png", "mjhq-30k/animals-0.png", "mscoco-30k/42.png"} <= found
    assert json.loads((trees / "geneval/00000/metadata.jsonl").read_text())["tag"] == "single_object"
    assert Image.open(trees / "dpg-bench/item0.png").size == (64, 64)
    assert len({(trees / f"geneval/00000/samples/000{n}.png").read_bytes() for n in range(4)}) == 4


def test_genevals_own_verdicts_make_its_number(
    run: Path, data: Path, drawn_all: tuple[Path, Result], tmp_path: Path
) -> None:
    dog = json.dumps({"dog": [[0.0, 0.0, 9.0, 9.0, 0.95]]})
    lines = [
        {"filename": f"x/{item:05}/samples/{n:04}.png", "tag": "single_object",
         "prompt": f"a photo of a single_object {item}", "correct": n == item, "reason": "" if n == item else "found 0",
         "details": dog if n == item else "{}"}
        for item in range(2) for n in range(4)
    ]  # fmt: skip
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = ("evaluate", run, "geneval", "--data", data, "--limit", 2, "-o", drawn_all[0], *QUICK, "--json")
    done = harmon(*again, "--examine", f"results={tmp_path / 'results.jsonl'}")
    assert done.exit_code == 0, done.output
    (one,) = json.loads(done.stdout)["benchmarks"]
    assert one["numbers"][0]["measure"] == "overall" and one["numbers"][0]["value"] == 0.25
    assert one["examiner"] == "GenEval's own detector, as results.jsonl says"
    assert one["numbers"][0]["paper"] == {"harmon-0.5b": 0.71, "harmon-1.5b": 0.76}
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    short = harmon(*again, "--examine", f"results={tmp_path / 'results.jsonl'}")
    assert short.exit_code == 3
    assert "1 of 8 pictures of geneval could not be judged" in json.loads(short.stdout)["benchmarks"][0]["refused"]


def test_a_second_run_asks_and_draws_nothing(
    run: Path,
    data: Path,
    asked_all: tuple[Path, dict[str, Any]],
    drawn_all: tuple[Path, Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asked.Answerer, "work", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(drawings.Painter, "work", lambda *_: pytest.fail("drawn again"))
    out, told = asked_all
    again = harmon("evaluate", run, *QUESTIONS, "--data", data, "--limit", 3, "-o", out, *SHORT, "--json")
    assert json.loads(again.stdout) == told
    drawn = harmon("evaluate", run, *PROMPTS, "--data", data, "--limit", 2, "-o", drawn_all[0], *QUICK, "--json")
    assert json.loads(drawn.stdout) == json.loads(drawn_all[1].stdout)


def test_answers_about_other_pictures_are_not_taken_for_these(run: Path, tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    mini.pope(tmp_path / "pope")
    command = ("evaluate", run, "pope", "--data", tmp_path / "pope", "--limit", 2, "-o", tmp_path / "out", *SHORT)
    assert harmon(*command).exit_code == 0
    for path in (tmp_path / "pope").rglob("*.jpg"):
        path.write_bytes(mini.jpeg(8))
    again = harmon(*command)
    assert again.exit_code == 3 and "has answers about other pictures" in again.stderr


def test_variants_choose_the_form_the_words_the_reading_and_the_headline(run: Path, data: Path, tmp_path: Path) -> None:
    variants = ("pope=adversarial", "pope=lmms-eval", "mmbench=vanilla", "gqa=vlmevalkit")
    done = harmon(
        "evaluate", run, "pope", "mmbench", "gqa", "--data", data, "--limit", 1, "-o", tmp_path, *SHORT, "--json",
        *(part for one in variants for part in ("--variant", one)),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    pope, mmbench, gqa = json.loads(done.stdout)["benchmarks"]
    assert (pope["benchmark"], pope["asked_as"], pope["reading"]) == ("pope-adversarial", "lmms-eval", "lmms-eval")
    assert pope["numbers"][0]["measure"] == "adversarial, accuracy"
    assert [number["measure"] for number in mmbench["numbers"]] == ["vanilla", "circular"]
    assert (gqa["asked_as"], gqa["reading"]) == ("vlmevalkit", "vlmevalkit")


def test_two_checkpoints_are_compared_on_the_same_items(run: Path, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = shutil.copytree(run, tmp_path / "other")
    file = next(other.rglob("model.safetensors"))
    save_file(weights(config_of(other), seed=7), file)
    done = harmon(
        "evaluate", run, "gqa", "mme", "--compare", other, "--data", data, "--limit", 6, "-o", tmp_path / "out", *SHORT,
        "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["checkpoint"]["weights"] != told["other_checkpoint"]["weights"]
    for one in told["differences"]:
        low, high = one["interval_95"]
        assert low <= one["difference"] <= high and one["resamples"] == 1000 and one["seed"] == 0
        assert one["difference"] == pytest.approx(one["first"] - one["second"])
    assert "Against another checkpoint" in (tmp_path / "out/report.html").read_text()


def config_of(run: Path) -> Any:
    from harmon.trained import description_of

    return description_of(run).model


def arguments_of(run: Path, data: Path, out: Path, *more: object) -> list[str]:
    told = ("evaluate", run, "gqa", "--data", data, "--limit", ITEMS, "-o", out, "--batch", 2, *SHORT, *more)
    return [str(one) for one in told]


def test_a_killed_run_goes_on_and_asks_nothing_twice(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "flows.cli", *arguments_of(run, data, tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
        journal = journal_of(tmp_path, process)
        process.send_signal(signal.SIGKILL)
    kept = journal.read_bytes().split(b"\n")[:-1]  # a torn last line is none
    before = [json.loads(line)["item"] for line in kept]
    assert 4 <= len(before) < ITEMS
    asked_now: list[str] = []
    work = asked.Answerer.work

    def counted(answerer: asked.Answerer, items: Sequence[Question]) -> list[asked.Answered]:
        asked_now.extend(question.id for question in items)
        return work(answerer, items)

    monkeypatch.setattr(asked.Answerer, "work", counted)
    done = harmon(*arguments_of(run, data, tmp_path, "--json"))
    assert done.exit_code == 0, done.output
    assert sorted([*before, *asked_now]) == sorted(str(201000 + number) for number in range(ITEMS))
    whole = harmon(*arguments_of(run, data, tmp_path / "whole", "--json"))
    ours, theirs = (json.loads(one.stdout)["benchmarks"][0]["content_hash"] for one in (done, whole))
    assert ours == theirs


def journal_of(out: Path, process: subprocess.Popen[bytes], lines: int = 4) -> Path:
    """The journal, once it has so many lines."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        for journal in out.glob("gqa-*/.work/*/00000/journal.jsonl"):
            if journal.read_bytes().count(b"\n") >= lines:
                return journal
        time.sleep(0.005)
    raise AssertionError("no answer was written down")


def test_a_killed_run_of_pictures_goes_on_and_draws_nothing_twice(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ("evaluate", run, "geneval", "--data", data, "--limit", 3, "-o", tmp_path, "--batch", 2, *QUICK, "--json")
    work, drawn = drawings.Painter.work, list[str]()

    def killed(painter: drawings.Painter, items: Sequence[drawings.Wanted]) -> list[drawings.Drawn]:
        if len(drawn) >= 6:
            raise KeyboardInterrupt
        drawn.extend(one.row_id for one in items)
        return work(painter, items)

    monkeypatch.setattr(drawings.Painter, "work", killed)
    assert harmon(*told).exit_code != 0
    monkeypatch.setattr(drawings.Painter, "work", lambda painter, items: (
        drawn.extend(one.row_id for one in items), work(painter, items))[1])  # fmt: skip
    assert len(json.loads(harmon(*told).stdout)["benchmarks"]) == 1
    assert sorted(drawn) == [f"{item:05}/{number:04}" for item in range(3) for number in range(4)]


@pytest.mark.slow
def test_actors_of_ray_give_the_same_answers(run: Path, data: Path, tmp_path: Path) -> None:
    alone = harmon(*arguments_of(run, data, tmp_path / "alone", "--json"))
    crew = harmon(*arguments_of(run, data, tmp_path / "crew", "--workers", 2, "--json"))
    assert crew.exit_code == 0, crew.output
    hashes = [json.loads(one.stdout)["benchmarks"][0]["content_hash"] for one in (alone, crew)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gqa",), "Name a CHECKPOINT and at least one BENCHMARK"),
        (("nowhere", "gqa"), "There is no checkpoint nowhere"),
        (("RUN", "gqqa"), "There is no benchmark 'gqqa'; did you mean 'gqa'?"),
        (("RUN", "gqa", "--variant", "gqa=qwen"), "gqa has no variant 'qwen'; it has llava, lmms-eval, vlmevalkit"),
        (("RUN", "gqa", "--variant", "pope=random"), "is of a benchmark that is not asked for"),
        (("RUN", "gqa", "gqa"), "gqa is asked for twice"),
        (("RUN", "wise", "--variant", "wise=legacy", "--variant", "wise=verified"), "legacy and verified"),
        (("RUN", "gqa", "--examine", "result=x"), "did you mean 'results'"),
        (("RUN", "geneval", "--sampling", "ar_stepz=1"), "did you mean 'ar_steps'"),
        (("RUN", "gqa", "--data", "elsewhere"), "--data names no folder for gqa"),
        (("RUN", "geneval", "--compare", "RUN", "--examine", "results=x"), "tells of one checkpoint's pictures"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_with_code_2(
    arguments: tuple[str, ...], words: str, run: Path, data: Path, tmp_path: Path
) -> None:
    named = [str(run) if one == "RUN" else one for one in arguments]
    done = harmon("evaluate", *named, "--data", data, "-o", tmp_path / "out")
    assert done.exit_code == 2 and words in done.stderr, done.output
    assert done.stderr.count("\n") == 1
