"""The report shows what the run did, says what is missing, and asks nothing of any network."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.report import ReportInput, build_report
from flows.report.inputs import Goals
from pipelines.errors import HarmonError
from pipelines.web import Planted
from tests.flows.made_run import CAPTIONS, HOSTILE, make_run
from tests.parts import need

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ReportInput:
    return make_run(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def page(made: ReportInput) -> str:
    return build_report(made).read_text()


def text_of(page: str) -> str:
    """What a reader sees, spaces folded."""
    body = page[page.index("<body>") :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_the_page_is_one_small_file_without_outside_addresses(made: ReportInput, page: str) -> None:
    assert (made.run / "report.html").stat().st_size < 5_000_000
    references = re.findall(r'(?:src|href|action|xlink:href)="([^"]*)"', page)
    assert references and all(reference.startswith(("data:image/", "#")) for reference in references)
    assert "url(" not in page and "@import" not in page and "<script" not in page


def test_headlines_state_share_count_chance_and_verdict(made: ReportInput, page: str) -> None:
    colour = made.scores["generation"]["held_out"]["colour"]  # type: ignore[index]
    assert (colour["right"], colour["n"]) == (9, 12)
    text = text_of(page)
    assert "9 of 12; chance 12.5%. Goal of 75% reached." in text
    margins = {part["kind"]: part["share"] - part["chance"] for part in made.scores["answers"]}  # type: ignore[attr-defined]
    above = [kind for kind, margin in margins.items() if margin >= 0.2]
    assert 0 < len(above) <= len(margins)
    assert f"Its answers are well above the best constant answer on: {', '.join(above)}." in text


def test_a_missed_goal_is_called_missed(made: ReportInput, tmp_path: Path) -> None:
    strict = dataclasses.replace(made, goals=Goals(colour=0.9, shape=0.99, two=0.5))
    text = text_of(build_report(strict, tmp_path / "report.html").read_text())
    assert "Goal of 90% missed." in text and "Goal of 99% missed." in text and "Goal of 50% reached." in text
    assert "has not reliably learned" in text


def test_every_reject_reason_and_every_planted_row_is_accounted_for(page: str) -> None:
    text = text_of(page)
    assert "24 of 26 −2" in text and "20 of 24 −4" in text
    for reason in ("dead_link", "not_an_image", "low_clarity", "too_long"):
        assert reason in text
    assert "2 of 2 bad rows planted in the lists left where they had to" in text
    assert "what was seen of bad-html-0" in text


def test_a_planted_row_that_stayed_is_reported(made: ReportInput, tmp_path: Path) -> None:
    stayed = Planted("scenes", "scene-000000", "http://127.0.0.1:9/x.png", "download", "http_404")
    source = dataclasses.replace(made, planted=(*made.planted, stayed))
    text = text_of(build_report(source, tmp_path / "report.html").read_text())
    assert "2 of 3 bad rows" in text and "stayed: expected http_404 at download" in text


def test_captions_stand_before_and_after_rewriting(page: str) -> None:
    text = text_of(page)
    assert CAPTIONS in text and "rewritten 23, too_long 1" in text
    assert HOSTILE in text  # as text: it was escaped, and no tag of it was removed by text_of


def test_the_rest_of_the_run_is_there(made: ReportInput, page: str) -> None:
    text = text_of(page)
    for dataset in made.opened:
        assert dataset.head is not None and dataset.head.content_hash in text
    assert "found all 2 datasets sound: 44 rows accounted for" in text
    assert "4 below, 20 kept" in text and "stands in for an aesthetic score" in text
    assert "stage1.learning_rate.llm 1e-05 0.0004" in text and "sampling.clip_x0 none 3" in text
    assert "patch latent KL-16 autoencoder" in text
    assert "Steps, 4 min 18 s in all" in text and "torch 2." in text
    assert page.count("<svg") >= 10 and page.count("<img") >= 35


def test_the_page_is_the_same_when_built_again(made: ReportInput, page: str) -> None:
    assert build_report(made).read_text() == page


def test_missing_parts_are_named(tmp_path: Path) -> None:
    empty = ReportInput(title="Nothing yet", run=tmp_path / "runs", datasets=(tmp_path / "data" / "scenes",))
    text = text_of(build_report(empty).read_text())
    for said in (
        "There are no scores: the evaluation has not run.",
        "There is no dataset scenes: its step has not run.",
        "No stage has been trained.",
        "No captions were rewritten.",
        "No timings were recorded.",
    ):
        assert said in text


def test_an_unsound_audit_is_said_first(made: ReportInput, tmp_path: Path) -> None:
    run = tmp_path / "demo"
    shutil.copytree(made.run, run)
    audits = json.loads((run / "audit.json").read_text())
    audits["scenes"]["sound"] = False
    (run / "audit.json").write_text(json.dumps(audits))
    assert "Unsound: scenes." in text_of(build_report(dataclasses.replace(made, run=run)).read_text())


def test_a_damaged_document_is_an_error_that_names_it(made: ReportInput, tmp_path: Path) -> None:
    run = tmp_path / "demo"
    shutil.copytree(made.run, run)
    (run / "audit.json").write_text("[{")
    with pytest.raises(HarmonError, match=r"audit\.json is damaged"):
        build_report(dataclasses.replace(made, run=run))


def test_a_browser_shows_the_page_and_requests_nothing(made: ReportInput, page: str, tmp_path: Path) -> None:
    need(CHROMIUM is not None, "Chromium is not installed: apt-get install chromium")
    log = tmp_path / "net.json"
    command = [str(CHROMIUM), *FLAGS.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    shown = subprocess.run(
        [*command, (made.run / "report.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "<title>The whole recipe, once</title>" in shown  # the hostile caption would have renamed it
    assert "9 of 12; chance 12.5%" in shown
    assert shown.count("<figure") == page.count("<figure") and shown.count("<img") == page.count("<img")
    requested = log.read_text(errors="replace")
    assert "report.html" in requested
    assert "example.com" not in requested and "beacon" not in requested
