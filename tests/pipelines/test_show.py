"""The page of a dataset: everything of a sample is on it, nothing of it is ever run, and a browser can search it."""

import html
import io
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.canonical import sample_key
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import SOURCE
from pipelines.show import ShowSettings, build_page, serve_page, write_page
from pipelines.show.samples import places
from pipelines.steps import Reads, Step, StepRun
from tests.parts import need

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
HOSTILE = '</script><script>document.title="owned"</script><img src="http://example.com/beacon.png" onerror="alert(1)">'
ROWS, SHARDS = 12, 3


def jpeg(shade: int) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), shade, np.uint8)).save(encoded, "JPEG")
    return encoded.getvalue()


def row(number: int) -> dict:
    row_id = f"row-{number}"
    return dict.fromkeys(SOURCE_SCHEMA.names) | {
        "key": sample_key("toys", row_id), "source": "toys", "row_id": row_id,
        "task": "text" if number == 5 else "text2image", "licence": "CC0-1.0", "terms_class": "open",
        "url": f'javascript:alert("{number}")', "caption": HOSTILE if number == 0 else f"a walrus number {number}",
        "width": 60, "height": 40 + number, "ext": "jpg", "bytes": 100, "sha256": f"{number:064x}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Pictures, a text, a picture that does not decode, rejects, captions of which one failed, scores."""
    dataset = Dataset(tmp_path_factory.mktemp("data") / "toys")
    run = StepRun(dataset, Step("download", 1, {"allow": "<b>all</b>"}))
    for shard in run.pending(range(SHARDS)):
        out = run.shard(shard)
        rows = [row(shard * ROWS // SHARDS + index) for index in range(ROWS // SHARDS)]
        for one in rows:
            if one["task"] != "text":
                number = int(one["row_id"].removeprefix("row-"))
                out.images().add(one["key"], b"no picture" if number == 7 else jpeg(20 * number), "jpg", {})
        out.columns(SOURCE, pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        lost = {"key": sample_key("toys", f"lost-{shard}"), "source": "toys", "row_id": f"lost-{shard}"}
        lost |= {"url": HOSTILE, "reason": "dead_link", "detail": HOSTILE}
        out.rejects(pa.Table.from_pylist([lost], REJECT_SCHEMA))
        out.finish(len(rows) + 1)
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    run = StepRun(dataset, Step("score", 1, {}, (Reads(dataset, (SOURCE,)),)))
    for shard in run.pending(dataset.shard_numbers):
        keys = dataset.table(SOURCE, shard, ["key"]).column("key")
        out = run.shard(shard)
        number = len(keys)
        failed = ["failed" if shard == 1 and index == 0 else "ok" for index in range(number)]
        texts = [None if state == "failed" else f"rewritten {shard}-{index}" for index, state in enumerate(failed)]
        reasons = ["too_long" if state == "failed" else None for state in failed]
        out.columns(
            "caption.v1",
            pa.table({"key": keys, "text": texts, "status": failed, "reason": pa.array(reasons, pa.string())}),
        )
        scores = pa.array([0.1 * (shard * number + index) for index in range(number)], pa.float32())
        out.columns("clarity", pa.table({"key": keys, "clarity": scores}))
        out.finish(number, {"too_long": failed.count("failed")})
    run.commit()
    return dataset


@pytest.fixture(scope="module")
def page(toys: Dataset) -> str:
    return build_page(toys, ShowSettings(lineage=True))


def text_of(page: str) -> str:
    body = page[page.index("<body>") : page.rindex("<script>")]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_every_sample_is_there_with_captions_scores_and_provenance(page: str) -> None:
    text = text_of(page)
    assert page.count('<article class="sample"') == ROWS and "12 of 12 samples" in text
    assert page.count('<img src="data:image/') == ROWS - 2 and "text only" in text and "cannot be decoded" in text
    for said in ("a walrus number 9", "rewritten 2-1", "no text: too_long", "toys, row row-11", "CC0-1.0 (open)"):
        assert said in text
    assert sample_key("toys", "row-3") in text and HOSTILE in text


def test_funnel_reasons_distributions_commits_and_lineage_are_told(page: str) -> None:
    text = text_of(page)
    assert "12 of 15 −3" in text and "dead_link 3 left" in text and "too_long 1 stays, without a value" in text
    assert "toys, lost-0" in text and "clarity, of 12 values in 12 rows" in text and "height, of 12 values" in text
    assert "0 download" in text and "1 score" in text and page.count('class="knot own"') == 2
    assert "<b>all</b>" in text  # a configuration, as text


def test_the_page_is_self_contained_and_runs_no_script_but_its_own(page: str) -> None:
    references = re.findall(r'(?:src|href|action|xlink:href)="([^"]*)"', page)
    assert references and all(one.startswith(("data:image/", "#")) for one in references)
    assert page.count("<script") == 1 and "onerror=" not in re.sub(r"&[^;]+;", "", page).replace("onerror=alert", "")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'") and "script-src 'sha256-" in policy[1]
    assert "unsafe-eval" not in policy[1] and "script-src 'unsafe-inline'" not in policy[1]


def test_samples_are_spread_over_all_shards_and_their_number_is_said(toys: Dataset) -> None:
    assert places(toys, 3) == [(0, [0]), (1, [0]), (2, [0])]
    assert sum(len(rows) for _, rows in places(toys, 999)) == ROWS
    text = text_of(build_page(toys, ShowSettings(samples=6)))
    assert "6 of 12 samples, evenly spread" in text
    with pytest.raises(ConfigurationError, match="choose 1 to 2000"):
        ShowSettings(samples=0)


def test_a_folder_without_commits_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(HarmonError, match="there is no dataset"):
        write_page(Dataset(tmp_path / "none"), ShowSettings(), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_page_is_served_on_loopback(toys: Dataset, page: str) -> None:
    with serve_page(toys, ShowSettings(lineage=True)) as address:
        assert address.startswith("http://127.0.0.1:") and address.endswith("/toys.html")
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.read().decode() == page


def test_a_browser_searches_the_page_and_requests_nothing(toys: Dataset, tmp_path: Path) -> None:
    need(CHROMIUM is not None, "Chromium is not installed: apt-get install chromium")
    out = write_page(toys, ShowSettings(), tmp_path / "toys.html")
    log = tmp_path / "net.json"
    command = [str(CHROMIUM), *FLAGS.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    shown = subprocess.run(
        [*command, out.as_uri() + "#search=rewritten%202-1%20walrus"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "<title>toys</title>" in shown  # the hostile caption would have renamed it
    assert f"1 of {ROWS} shown" in shown  # our script ran, and found the one card
    assert len(re.findall(r'<article class="sample" hidden', shown)) == ROWS - 1
    requested = log.read_text(errors="replace")
    assert "toys.html" in requested and "example.com" not in requested and "beacon" not in requested
