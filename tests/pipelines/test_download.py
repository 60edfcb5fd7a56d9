"""The download step, through the real img2dataset: every row ends once, and no inner address is reached."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import catalogue, fetch, url_list
from pipelines.audit import audit
from pipelines.canonical import sample_key, sha256_hex
from pipelines.columns import LIST_SCHEMA
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings, download, download_step
from pipelines.errors import HarmonError
from pipelines.fetch import FetchSettings
from pipelines.forget import forget
from pipelines.loopback import serve
from pipelines.request import Request
from pipelines.steps import Progress
from pipelines.url_list import cut, list_sha256, listed
from pipelines.web import WebSettings, planted, publish
from tests.parts import need

SOURCE = catalogue.source("scenes")
WHAT = DownloadSettings(rows_per_shard=16, allow=("127.0.0.1/32",))
HOW = FetchSettings(timeout=5, retries=1, patience=120)


@dataclass(frozen=True)
class Site:
    """A published web, a list with every kind of row, and what was asked of a host that is forbidden."""

    web: WebSettings
    folder: Path
    links: Path
    forbidden: list[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need(
        Path(os.environ.get(fetch.INTERPRETER) or fetch.DEFAULT_INTERPRETER).exists(),
        "img2dataset is not installed: run `make img2dataset`",
    )
    folder = tmp_path_factory.mktemp("site")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        web = WebSettings(port=free.getsockname()[1], classes=4, scenes=12, texts=4)
    published = publish(folder / "web", web)
    asked: list[str] = []

    class Forbidden(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(500)

        def log_message(self, format: str, *args: object) -> None:
            pass

    inner = ThreadingHTTPServer(("127.0.0.2", 0), Forbidden)
    threading.Thread(target=inner.serve_forever, args=(0.05,), daemon=True).start()
    secret = f"http://127.0.0.2:{inner.server_address[1]}"
    links = folder / "list.parquet"
    rows = [row for path in published.lists.values() for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows + extra_rows(web, folder / "web", secret), LIST_SCHEMA), links)
    yield Site(web, folder / "web", links, asked)
    inner.shutdown()
    inner.server_close()


def extra_rows(web: WebSettings, folder: Path, secret: str) -> list[dict[str, object]]:
    """Rows that the stand-in internet has not planted, and the files that they need."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (48, 32), "red").save(folder / "bad/turned.jpg", exif=turned)
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(folder / "bad/clear.png")
    urls = {
        "turned": f"{web.root}/bad/turned.jpg",
        "clear": f"{web.root}/bad/clear.png",
        "inner": f"{secret}/secret",
        "inner-by-redirect": f"{web.root}/redirect?to={secret}/secret",
        "file-by-redirect": f"{web.root}/redirect?to=file:///etc/hostname",
        "user": f"http://user@127.0.0.1:{web.port}/photographs/chelsea.png",
        "relative": "photographs/chelsea.png",
        "no-link": None,
        "empty": "",
        "cat": f"{web.root}/photographs/chelsea.png",
    }
    rows = [{"row_id": name, "url": url, "task": "text2image", "licence": "x"} for name, url in urls.items()]
    return [*rows, {"row_id": "odd", "url": urls["cat"], "task": "singing", "licence": "x"}]


EXTRA_REASONS = {
    "inner": "forbidden_address",
    "inner-by-redirect": "forbidden_address",
    "file-by-redirect": "forbidden_scheme",
    "user": "bad_url",
    "relative": "bad_url",
    "no-link": "no_url",
    "empty": "bad_url",
    "cat": "duplicate_row_id",
    "odd": "unknown_task",
}


@dataclass(frozen=True)
class Done:
    dataset: Dataset
    progress: list[Progress]


@pytest.fixture(scope="module")
def done(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Done:
    dataset = Dataset(tmp_path_factory.mktemp("done") / "scenes")
    progress: list[Progress] = []
    with serve(site.folder, site.web.port):
        download(dataset, SOURCE, site.links, WHAT, HOW, progress.append)
    return Done(dataset, progress)


def test_every_row_is_kept_in_order_or_rejected_with_its_reason(site: Site, done: Done) -> None:
    listed = pq.read_table(site.links).column("row_id").to_pylist()
    rejects = done.dataset.rejects().to_pylist()
    kept = done.dataset.whole_table("source").column("row_id").to_pylist()
    expected = {bad.row_id: bad.reason for bad in planted(site.web) if bad.step == "download"} | EXTRA_REASONS
    assert {row["row_id"]: row["reason"] for row in rejects} == expected
    positions = [listed.index(row_id) for row_id in kept]
    assert positions == sorted(positions) and len(kept) + len(rejects) == len(listed)
    head = done.dataset.head
    assert head is not None and (head.rows_in, head.rows_out) == (len(listed), len(kept))
    assert head.terms == {"scenes": {"licence": SOURCE.licence, "terms": "open"}}


def test_no_forbidden_host_was_asked(site: Site, done: Done) -> None:
    assert site.forbidden == []


def test_pictures_keep_the_bytes_that_were_served(site: Site, done: Done) -> None:
    seen = 0
    for shard in done.dataset.shard_numbers:
        images = done.dataset.images(shard)
        for row in done.dataset.table("source", shard).to_pylist():
            image = images.find(row["key"])
            assert (image is None) == (row["url"] is None) == (row["task"] == "text")
            assert row["key"] == sample_key("scenes", row["row_id"]) and row["terms_class"] == "open"
            if image is None or row["row_id"] in {"turned", "clear"}:
                continue
            served = (site.folder / row["url"].removeprefix(f"{site.web.root}/")).read_bytes()
            assert (row["bytes"], row["sha256"]) == (len(served), sha256_hex(served))
            with Image.open(io.BytesIO(image.data)) as picture:
                assert (picture.size, picture.mode) == ((row["width"], row["height"]), "RGB")
                plain = Image.open(io.BytesIO(served)).mode == "RGB"
            assert (image.data == served) == plain and image.extension == row["ext"]
            seen += 1
    assert seen > 30


def test_a_turned_picture_is_stored_upright(done: Done) -> None:
    (row,) = [r for r in done.dataset.whole_table("source").to_pylist() if r["row_id"] == "turned"]
    assert (row["width"], row["height"], row["ext"]) == (32, 48, "jpg")


def test_progress_is_told_for_each_shard_and_nothing_is_left_behind(site: Site, done: Done) -> None:
    total = done.progress[0].shards_total
    assert [p.shards_done for p in done.progress] == list(range(1, total + 1)) and total > 3
    assert done.progress[-1].rows_done == pq.read_table(site.links).num_rows
    assert not (done.dataset.root / ".work").exists()


def test_a_finished_download_is_not_done_again(site: Site, done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetch.INTERPRETER, "/no/such/python")
    before = done.dataset.head
    assert download(done.dataset, SOURCE, site.links, WHAT, HOW) == before


def test_an_outage_marks_nothing_done(site: Site, tmp_path: Path) -> None:
    dataset = Dataset(tmp_path / "scenes")
    with pytest.raises(HarmonError, match="outage"):
        download(dataset, SOURCE, reachable(site, tmp_path), WHAT, HOW)
    assert dataset.head is None
    assert not list(tmp_path.glob("scenes/steps/*/[0-9]*.json"))


def reachable(site: Site, folder: Path) -> Path:
    """The list without the rows whose links answer or are refused without a server."""
    table = pq.read_table(site.links)
    rows = [row for row in table.to_pylist() if str(row["url"]).startswith(f"{site.web.root}/scenes")]
    path = folder / "reachable.parquet"
    pq.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA), path)
    return path


@pytest.mark.slow
def test_a_killed_download_leaves_no_process_and_is_finished_by_the_next(
    site: Site, done: Done, tmp_path: Path
) -> None:
    root = tmp_path / "scenes"
    script = (
        "from pathlib import Path; from tests.pipelines.test_download import *\n"
        f"download(Dataset({str(root)!r}), SOURCE, Path({str(site.links)!r}), WHAT, HOW)"
    )
    with serve(site.folder, site.web.port):
        flow = subprocess.Popen([sys.executable, "-c", script])
        wait_until(lambda: len(processes_below(root)) >= 2)
        flow.send_signal(signal.SIGKILL)
        flow.wait()
        wait_until(lambda: not processes_below(root))
        dataset = Dataset(root)
        download(dataset, SOURCE, site.links, WHAT, HOW)
    assert dataset.head is not None and done.dataset.head is not None
    assert dataset.head.content_hash == done.dataset.head.content_hash


def processes_below(folder: Path) -> list[int]:
    """Processes that work in `folder`: img2dataset and its workers."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_absent_img2dataset_is_named_with_the_way_to_get_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fetch.INTERPRETER, "/no/such/python")
    with pytest.raises(HarmonError, match="make img2dataset"):
        download(Dataset(tmp_path / "scenes"), SOURCE, site.links, WHAT, HOW)


def test_an_img2dataset_that_keeps_failing_is_told_with_its_last_words(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho out of luck\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv(fetch.INTERPRETER, str(failing))
    with pytest.raises(HarmonError, match="out of luck"):
        download(Dataset(tmp_path / "scenes"), SOURCE, site.links, WHAT, HOW)


def test_a_silent_img2dataset_is_stopped(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    monkeypatch.setenv(fetch.INTERPRETER, str(silent))
    with pytest.raises(HarmonError, match="unfinished"):
        download(Dataset(tmp_path / "scenes"), SOURCE, site.links, WHAT, FetchSettings(patience=0.2))


@pytest.mark.parametrize("rows", [[], [{"row_id": None, "task": "text"}]])
def test_a_list_without_rows_or_names_is_refused(rows: list[dict[str, object]], tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA), path)
    with pytest.raises(HarmonError, match=r"list\.parquet"):
        download(Dataset(tmp_path / "scenes"), SOURCE, path, WHAT)


def few_rows(number: int) -> list[dict[str, object]]:
    turns = [{"role": "user", "text": "One?"}, {"role": "assistant", "text": "Two."}]
    return [
        {"row_id": str(n % 90), "url": f"http://a.example/{n}" if n % 3 else None, "task": "text2image",
         "conversations": turns[: n % 3] or None}
        for n in range(number)
    ]  # fmt: skip


def test_a_list_written_anew_by_another_writer_is_the_same_list(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist(few_rows(100), LIST_SCHEMA)
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    pq.write_table(rows, first)
    pq.write_table(rows.replace_schema_metadata({"by": "another"}), second, row_group_size=7, compression="gzip")
    assert first.read_bytes() != second.read_bytes()
    assert download_step(SOURCE, first, WHAT).key == download_step(SOURCE, second, WHAT).key
    for change in ({"url": "http://a.example/other"}, {"url": ""}, {"conversations": []}, {"caption": ""}):
        changed = few_rows(100)
        changed[3] |= change
        pq.write_table(pa.Table.from_pylist(changed, LIST_SCHEMA), second)
        assert download_step(SOURCE, first, WHAT).key != download_step(SOURCE, second, WHAT).key


def test_rows_come_in_shards_and_repeated_ids_are_told_across_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_list, "BATCH", 7)
    pq.write_table(pa.Table.from_pylist(few_rows(100), LIST_SCHEMA), tmp_path / "list.parquet")
    tables = list(cut(listed(tmp_path / "list.parquet"), 16))
    assert [table.num_rows for table in tables] == [16] * 6 + [4]
    assert pa.concat_tables(tables).column("again").to_pylist() == [False] * 90 + [True] * 10
    assert pa.concat_tables(tables).column("url").to_pylist() == [row["url"] for row in few_rows(100)]


def test_a_long_list_is_never_held_in_memory(tmp_path: Path) -> None:
    path, rows = tmp_path / "list.parquet", 100_000
    captions = pa.array([f"{n:06}" + "x" * 1000 for n in range(rows)])
    columns = {"row_id": pa.array(map(str, range(rows))), "caption": captions, "task": pa.array(["text"] * rows)}
    nothing = {name: pa.nulls(rows, LIST_SCHEMA.field(name).type) for name in ("url", "conversations", "licence")}
    table = pa.table({name: (columns | nothing)[name] for name in LIST_SCHEMA.names}, schema=LIST_SCHEMA)
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert sum(one.num_rows for one in cut(listed(path), 1000)) == rows
        list_sha256(path)
    finally:
        pa.set_memory_pool(before)
    assert table.nbytes > 100e6 and pool.max_memory() < 60e6


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarmonError, match=r"none\.parquet does not exist"):
        download(Dataset(tmp_path / "scenes"), SOURCE, tmp_path / "none.parquet", WHAT)


def test_a_list_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"row_id": ["a"]}), path)
    with pytest.raises(HarmonError, match="columns"):
        download(Dataset(tmp_path / "scenes"), SOURCE, path, WHAT)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("conversations", pa.array(["a dialogue that is one text"])),
        ("caption", pa.array([["a", "list"]])),
        ("url", pa.array([b"http://a.example/\xff"])),
    ],
)
def test_a_column_of_another_type_is_named(name: str, values: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    table = pa.Table.from_pylist([{"row_id": "a", "task": "text"}], LIST_SCHEMA)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), path)
    with pytest.raises(HarmonError, match=rf"column {name} of the list .*list\.parquet"):
        download(Dataset(tmp_path / "scenes"), SOURCE, path, WHAT)


def test_an_empty_link_is_a_reject_and_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetch.INTERPRETER, "/no/such/python")
    path = tmp_path / "list.parquet"
    tasks = {"picture": "text2image", "words": "text"}
    rows = [{"row_id": row_id, "url": "", "task": task} for row_id, task in tasks.items()]
    pq.write_table(pa.Table.from_pylist([*rows, {"row_id": "kept", "task": "text"}], LIST_SCHEMA), path)
    dataset = Dataset(tmp_path / "scenes")
    commit = download(dataset, SOURCE, path, WHAT)
    assert (commit.rows_out, dict(commit.rejected)) == (1, {"bad_url": 2})
    assert dataset.whole_table("source").column("row_id").to_pylist() == ["kept"]


def test_words_need_no_img2dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetch.INTERPRETER, "/no/such/python")
    path = tmp_path / "list.parquet"
    turns = [{"role": "user", "text": "What is one and one?"}, {"role": "assistant", "text": "Two."}]
    rows = [{"row_id": f"text-{i}", "task": "text", "conversations": turns, "licence": "x"} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA), path)
    dataset = Dataset(tmp_path / "scenes")
    assert download(dataset, SOURCE, path, WHAT).rows_out == 20
    assert dataset.whole_table("source").column("conversations").to_pylist() == [turns] * 20
    assert dataset.groups() == ["download.telemetry", "source"]


def test_what_changes_the_result_changes_the_key_and_how_does_not(site: Site) -> None:
    key = download_step(SOURCE, site.links, WHAT).key
    assert download_step(SOURCE, site.links, WHAT.model_copy(update={"max_bytes": 1})).key != key
    assert download_step(catalogue.source("photographs"), site.links, WHAT).key != key
    assert download_step(SOURCE, site.links, DownloadSettings(**WHAT.model_dump())).key == key


def test_what_was_forgotten_beside_it_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    with serve(site.folder, site.web.port):
        first = Dataset(tmp_path / "first")
        download(first, SOURCE, site.links, WHAT, HOW)
        rows = [row for row in first.whole_table("source").to_pylist() if row["url"]]
        by_key, by_url, by_bytes = rows[0], rows[1], rows[2]
        request = Request(
            keys=frozenset([by_key["key"]]), urls=frozenset([by_url["url"]]), sha256=frozenset([by_bytes["sha256"]])
        )
        forget(first, request)
        again = Dataset(tmp_path / "again")
        download(again, SOURCE, site.links, WHAT, HOW)
    assert audit(again, deep=True).sound
    rejects = [row for row in again.rejects().to_pylist() if row["reason"] == "forgotten"]
    assert {row["key"] for row in rejects} >= {row["key"] for row in (by_key, by_url, by_bytes)}
    assert all(row["url"] is None for row in rejects)
    kept = set(again.whole_table("source").column("key").to_pylist())
    assert kept == set(first.whole_table("source").column("key").to_pylist())
    head, other = again.head, first.commit(0)
    assert head is not None and head.rows_out == other.rows_out - len(rejects)
