"""Datasets in S3, on a real server: conditional writes, ranged reads, large objects, plain errors."""

import hashlib
import io
import os
import random
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from small_datasets import ROWS, SHARDS, score_step, source_row, write_all, write_images, write_scores

from pipelines import s3
from pipelines.audit import audit
from pipelines.canonical import sha256_hex
from pipelines.columns import SOURCE_SCHEMA, read_columns, write_columns
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.s3 import S3Store
from pipelines.steps import Reads, Step, StepRun
from pipelines.storage import OtherBytes, Store, StoredFile, open_store
from tests.parts import need


@pytest.fixture
def store(s3_root: str) -> S3Store:
    store = open_store(s3_root)
    assert isinstance(store, S3Store)
    return store


class Counting:
    """Counts what a store asks of the server, and how many bytes of data it gets and sends."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.got = self.sent = 0
        real = store._s3  # type: ignore[attr-defined]
        outer = self

        class Client:
            def __getattr__(self, name: str) -> Any:
                call = getattr(real, name)
                if name in ("get_paginator", "exceptions"):
                    return call

                def counted(**arguments: Any) -> Any:
                    outer.calls.append(name)
                    outer.sent += len(arguments.get("Body", b""))
                    answer = call(**arguments)
                    outer.got += answer.get("ContentLength", 0) if name == "get_object" else 0
                    return answer

                return counted

        monkeypatch.setattr(S3Store, "_s3", Client())


def test_put_read_list_and_remove(store: S3Store, tmp_path: Path) -> None:
    assert store.put("a/b.bin", b"hello") == StoredFile("a/b.bin", 5, sha256_hex(b"hello"))
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert store.put("c", tmp_path / "file").bytes == 100
    assert store.take("d", tmp_path / "file", sha256_hex(b"x" * 100)).path == "d"
    assert not (tmp_path / "file").exists()
    assert store.sizes() == {"a/b.bin": 5, "c": 100, "d": 100}
    assert store.sizes("a") == {"a/b.bin": 5}
    assert (store.read("a/b.bin"), store.size("a/b.bin"), store.size("absent")) == (b"hello", 5, None)
    assert store.sha256("c") == sha256_hex(b"x" * 100)
    store.remove("c")
    store.remove("c")
    assert store.list() == ["a/b.bin", "d"]


def test_equal_bytes_are_adopted_and_other_bytes_refused(store: S3Store) -> None:
    first = store.put("a", b"one")
    assert store.put("a", b"one") == first
    with pytest.raises(OtherBytes, match="never overwritten"):
        store.put("a", b"two")
    assert store.read("a") == b"one"


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_of_racing_writers_exactly_one_wins(store: S3Store, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(s3, "SINGLE", 1 << 20)  # which concerns files, and not what is in memory
    barrier = threading.Barrier(4)
    outcomes: list[bytes | None] = []

    def race(number: int) -> None:
        content = bytes([number]) * size
        barrier.wait()
        try:
            store.put("a", content)
            outcomes.append(content)
        except OtherBytes:
            outcomes.append(None)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome for outcome in outcomes if outcome is not None] == [store.read("a")]
    assert len(outcomes) == 4
    assert store.uploads() == []


def test_racing_writers_of_one_large_file_all_have_it(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "SINGLE", 1 << 20)
    data = random.Random(1).randbytes(3_000_000)
    barrier, file = threading.Barrier(4), _file(tmp_path / "file", data)

    def race(_: int) -> StoredFile:
        barrier.wait()
        return store.put("a", file)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(race, range(4))) == {StoredFile("a", len(data), sha256_hex(data))}
    assert store.read("a") == data
    assert store.uploads() == []


def test_a_large_object_goes_in_parts_and_is_adopted(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "SINGLE", 1 << 20)
    monkeypatch.setattr(s3, "PART", 5 << 20)
    data = random.Random(0).randbytes(11 << 20)
    (tmp_path / "file").write_bytes(data)
    count = Counting(store, monkeypatch)
    stored = store.put("large", tmp_path / "file")
    assert stored == StoredFile("large", len(data), sha256_hex(data))
    assert count.calls.count("upload_part") == 3
    assert store.take("large", tmp_path / "file", stored.sha256) == stored
    assert count.calls.count("upload_part") == 3  # it stands: nothing is sent again
    with pytest.raises(OtherBytes):
        store.put("large", data[:-1] + b"!")
    with pytest.raises(HarmonError, match="changed after its writing"):
        store.take("other", _file(tmp_path / "changed", data), sha256_hex(b"what was meant"))
    assert store.list() == ["large"]
    assert store.uploads() == []


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _refused(status: int, code: str, operation: str) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)


@pytest.mark.parametrize("size", [10, 2 << 20])
def test_a_conflict_is_tried_again(store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """409 cannot be provoked at will on the server, so its answer is put in the way of the first call."""
    monkeypatch.setattr(s3, "SINGLE", 1 << 20)
    real = store._s3
    conflicts = iter([409, 409])
    name = "put_object" if size < s3.SINGLE else "complete_multipart_upload"

    def meet(**arguments: Any) -> Any:
        if (status := next(conflicts, None)) is not None:
            raise _refused(status, "ConditionalRequestConflict", name)
        return getattr(real, name)(**arguments)

    monkeypatch.setattr(S3Store, "_s3", _With(real, {name: meet}))
    data = b"x" * size
    assert store.put("a", _file(tmp_path / "a", data)).sha256 == sha256_hex(data)
    assert store.read("a") == data


@pytest.mark.parametrize("size", [10, 2 << 20])
def test_a_put_whose_answer_was_lost_is_known_as_done(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The write succeeded, its answer was lost, the client's retry meets its own object: 412, or no such upload."""
    monkeypatch.setattr(s3, "SINGLE", 1 << 20)
    real = store._s3
    name = "put_object" if size < s3.SINGLE else "complete_multipart_upload"

    def twice(**arguments: Any) -> Any:
        getattr(real, name)(**arguments)
        return getattr(real, name)(**arguments)

    monkeypatch.setattr(S3Store, "_s3", _With(real, {name: twice}))
    data = b"x" * size
    assert store.put("a", _file(tmp_path / "a", data)) == StoredFile("a", size, sha256_hex(data))


class _With:
    """A client of which some calls are other ones."""

    def __init__(self, real: Any, calls: dict[str, Any]) -> None:
        self._real, self._calls = real, calls

    def __getattr__(self, name: str) -> Any:
        return self._calls.get(name) or getattr(self._real, name)


def test_what_is_read_is_what_is_fetched(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(1).randbytes(100_000)
    store.put("a", data)
    count = Counting(store, monkeypatch)
    view = store.view("a")
    assert (len(view), view[500:900], view[70_000:70_010]) == (100_000, data[500:900], data[70_000:70_010])
    assert count.got == 410
    with store.open("a") as stream:
        assert stream.seek(-10, io.SEEK_END) == 99_990
        assert stream.read() == data[-10:]
        stream.seek(0)
        assert hashlib.sha256(stream.read()).hexdigest() == sha256_hex(data)


def test_errors_are_one_sentence_that_says_what_to_do(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarmonError, match=r"absent: S3 answered NoSuchKey.*run `harmon audit`"):
        store.read("absent")
    with pytest.raises(HarmonError, match="NoSuchBucket"):
        open_store("s3://no-such-bucket/x").read("a")
    with pytest.raises(HarmonError, match="no path inside"):
        store.put("../a", b"")
    with pytest.raises(HarmonError, match="on no local disk"):
        store.local("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    with pytest.raises(HarmonError, match=r"cannot be reached.*check AWS_ENDPOINT_URL"):
        store.read("a")


def test_a_dataset_in_s3_equals_the_local_one(s3_root: str, tmp_path: Path) -> None:
    local, remote = write_all(tmp_path / "toys"), write_all(f"{s3_root}/toys")
    assert [c.content_hash for c in remote.commits()] == [c.content_hash for c in local.commits()]
    assert remote.name == "toys"
    assert remote.store.list() == [path for path in local.store.list() if not path.startswith(".work")]
    assert remote.table("source", 1).equals(local.table("source", 1))
    here, there = local.images(1), remote.images(1)
    assert [there.read(row) for row in range(len(there))] == [here.read(row) for row in range(len(here))]
    keys = local.table("source", 1)["key"].to_pylist()
    assert [there.find(key) for key in keys] == [here.find(key) for key in keys]
    for deep in (False, True):
        report = audit(remote, deep)
        assert report.findings == ()
        assert report.rows == SHARDS * (ROWS - 1)
    assert not remote.store.work(".work").exists()


def test_a_dataset_asks_for_new_commits_at_most_once_a_second(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(Dataset(f"{s3_root}/toys"))
    dataset = Dataset(f"{s3_root}/toys")
    clock = 100.0
    monkeypatch.setattr("pipelines.dataset.time.monotonic", lambda: clock)
    assert (dataset.head.number if dataset.head else None) == 0
    write_scores(Dataset(f"{s3_root}/toys"))
    assert (dataset.head.number if dataset.head else None) == 0
    assert (newest.number if (newest := dataset.newest()) else None) == 1
    dataset.commit(0)
    assert (dataset.head.number if dataset.head else None) == 1


def test_one_image_is_one_ranged_read(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(f"{s3_root}/toys")
    write_images(dataset)
    shard = dataset.images(2)
    count = Counting(dataset.store, monkeypatch)
    image = shard.read(2)
    assert count.calls == ["get_object"]
    assert len(image.data) < count.got < len(image.data) + 4 * 512 + 512


def test_damage_in_s3_is_found(s3_root: str) -> None:
    dataset = write_all(f"{s3_root}/toys")
    entry = dataset.entry("images", 1)
    assert entry is not None
    data = bytearray(dataset.store.read(entry.path))
    data[700] ^= 1
    dataset.store.remove(entry.path)
    dataset.store.put(entry.path, bytes(data))
    dataset.store.put("notes.txt", b"?")
    other = dataset.entry("score.length", 2)
    assert other is not None
    dataset.store.remove(other.path)
    assert audit(dataset).counts == {"file_missing": 1, "foreign_file": 1}
    assert audit(dataset, deep=True).counts == {"file_missing": 1, "foreign_file": 1, "hash_differs": 1}


def test_an_upload_that_never_ended_is_a_leftover(s3_root: str) -> None:
    dataset = Dataset(f"{s3_root}/toys")
    write_images(dataset)
    assert isinstance(dataset.store, S3Store)
    dataset.store._s3.create_multipart_upload(**dataset.store._at("images/0123abcd/00000.tar"))
    report = audit(dataset)
    assert report.sound
    assert report.counts == {"leftover_upload": 1}
    dataset.store.drop_upload(dataset.store.uploads()[0])
    assert audit(dataset).counts == {}


def test_a_shard_is_resumed_from_a_journal_on_local_disk(s3_root: str) -> None:
    dataset = Dataset(f"{s3_root}/toys")
    write_images(dataset)
    write_scores(dataset)
    assert dataset.store.work("x").is_relative_to(os.environ["HARMON_SCRATCH"])
    assert dataset.commit_of(score_step(dataset).key) is not None


def test_reading_one_column_fetches_that_column_alone(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 100_000
    draw = np.random.default_rng(0)
    table = pa.table(
        {
            "key": [f"{number:032x}" for number in range(rows)],
            "text": [draw.bytes(40).hex() for _ in range(rows)],
            "score": draw.random(rows),
            "other": draw.random(rows),
        }
    )
    write_columns(table, tmp_path / "file")
    store.put("a", tmp_path / "file")
    metadata = pq.read_metadata(tmp_path / "file")
    (column,) = [
        metadata.row_group(group).column(number).total_compressed_size
        for group in range(metadata.num_row_groups)
        for number in range(4)
        if metadata.schema.names[number] == "score"
    ]
    count = Counting(store, monkeypatch)
    assert read_columns(store.readable("a"), ["score"])["score"].equals(table["score"])
    footer = 64 << 10  # what Parquet readers fetch from the end, to find the footer in it
    assert column <= count.got <= column + footer
    assert count.got < (store.size("a") or 0) / 5
    assert count.calls.count("get_object") <= 3


def test_a_caption_version_of_100_shards_writes_little(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(f"{s3_root}/toys")
    run, draw = StepRun(dataset, Step("download", 1, {})), random.Random(0)
    for shard in run.pending(range(100)):
        out = run.shard(shard)
        rows = [source_row(shard, row) | {"task": "text2image"} for row in range(4)]
        for row in rows:
            out.images().add(row["key"], draw.randbytes(100_000), "jpg", {})  # a photograph of 0.5 megapixels
        out.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        out.finish(rows_in=len(rows))
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    whole = sum(size or 0 for size in dataset.store.sizes().values())
    count = Counting(dataset.store, monkeypatch)
    again = Dataset(dataset.root)
    run = StepRun(again, Step("rewrite", 1, {"prompt": "v1"}, (Reads(again, ("source",)),)))
    for shard in run.pending(again.shard_numbers):
        keys = again.table("source", shard, ["key"])
        out = run.shard(shard)
        captions = pa.array([draw.randbytes(60).hex() for _ in range(keys.num_rows)])
        out.columns("caption.v1-tiny-00000000", keys.append_column("text", captions))
        out.finish(rows_in=keys.num_rows)
    run.commit()
    after = sum(size or 0 for size in dataset.store.sizes().values())
    assert count.sent == after - whole
    assert count.sent < 0.02 * whole
    assert not [call for call in count.calls if "multipart" in call]
    assert audit(again).sound


def test_other_tools_read_a_dataset_through_fsspec(s3_root: str) -> None:
    """The example of docs/datasets.md."""
    need(bool(find_spec("s3fs")), "s3fs is not installed; run `make env`")
    import fsspec

    toys = write_all(f"{s3_root}/toys")
    keys = toys.images(1).keys()
    urls = {group: toys.store.where(entry.path) for group in toys.groups() if (entry := toys.entry(group, 1))}
    with fsspec.open(urls["images"]) as stream, tarfile.open(fileobj=stream) as archive:
        names = archive.getnames()
    assert names[::2] == [f"{key}.jpg" for key in keys]
    with fsspec.open(urls["score.length"]) as stream:
        assert pq.read_table(stream).equals(toys.table("score.length", 1))
