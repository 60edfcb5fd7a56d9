"""Image shards: deterministic ustar that tarfile and webdataset read, with an index to every sample."""

import contextlib
import errno
import hashlib
import json
import os
import random
import tarfile
import tempfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archive import PIECE, scan
from pipelines.canonical import sha256_hex
from pipelines.errors import HarmonError
from pipelines.shards import BATCH, Image, ImageShard, ShardWriter, index_path
from pipelines.ustar import BLOCK, MAX_VIEW, header, member, size_of

KEYS = st.text("0123456789abcdef", min_size=32, max_size=32)
DATA = st.binary(max_size=60) | st.integers(0, 3).map(lambda blocks: b"\xff" * (BLOCK * blocks)) | st.just(b"\0" * 1100)
VIEW = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=30), max_size=3)
SAMPLES = st.lists(
    st.builds(Image, KEYS, st.sampled_from(["jpg", "png", "webp"]), DATA, VIEW),
    max_size=6,
    unique_by=lambda s: s.key,
)


def write(path: Path, samples: list[Image]) -> ShardWriter:
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(sample.key, sample.data, sample.extension, sample.view)
    return writer


def sample(number: int, data: bytes = b"data") -> Image:
    return Image(f"{number:032x}", "jpg", data, {"caption": f"number {number}"})


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES)
def test_samples_come_back_through_every_reader(tmp_path_factory: pytest.TempPathFactory, samples: list[Image]) -> None:
    path = tmp_path_factory.mktemp("shard") / "00000.tar"
    writer = write(path, samples)
    assert (writer.tar_sha256, writer.idx_sha256) == tuple(sha256_hex(p.read_bytes()) for p in (path, index_path(path)))
    shard = ImageShard(path, index_path(path))
    assert [shard.read(row) for row in range(len(shard))] == samples
    assert [shard.find(sample.key) for sample in samples] == samples
    assert [key for _, key in scan(path)] == shard.keys() == writer.keys
    with tarfile.open(path, "r:") as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    assert [name for name, _ in members] == [f"{s.key}.{e}" for s in samples for e in (s.extension, "json")]
    assert [data for _, data in members[::2]] == [s.data for s in samples]
    assert [json.loads(data) for _, data in members[1::2]] == [s.view for s in samples]


def test_webdataset_reads_a_shard_as_its_own(tmp_path: Path) -> None:
    samples = [sample(number, bytes([number]) * 700 * number) for number in range(5)]
    write(tmp_path / "00000.tar", samples)
    read = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in read] == [s.key for s in samples]
    assert [s["jpg"] for s in read] == [s.data for s in samples]
    assert [json.loads(s["json"]) for s in read] == [s.view for s in samples]


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(3)]
    first, second = write(tmp_path / "a.tar", samples), write(tmp_path / "b.tar", samples)
    assert (first.tar_sha256, first.idx_sha256) == (second.tar_sha256, second.idx_sha256)


def test_index_is_the_offset_of_each_sample_and_the_end(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [sample(1, b"x" * 512), sample(2, b"x" * 513)])
    index = (tmp_path / "a.tar.idx").read_bytes()
    offsets = [int.from_bytes(index[place : place + 8], "little") for place in range(0, len(index), 8)]
    assert offsets == [0, 4 * BLOCK, 9 * BLOCK]
    assert (tmp_path / "a.tar").stat().st_size == 9 * BLOCK + 2 * BLOCK


def test_a_key_without_an_image_is_not_found(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [sample(1)])
    shard = ImageShard(tmp_path / "a.tar", tmp_path / "a.tar.idx")
    assert shard.find(f"{2:032x}") is None
    with pytest.raises(IndexError):
        shard.read(1)


@pytest.mark.parametrize(
    ("key", "extension"),
    [("short", "jpg"), ("A" * 32, "jpg"), ("../" + "a" * 29, "jpg"), ("a" * 32, ".jpg"), ("a" * 32, "json")],
)
def test_names_that_readers_would_misread_are_refused(tmp_path: Path, key: str, extension: str) -> None:
    with pytest.raises(HarmonError), ShardWriter(tmp_path / "a.tar") as writer:
        writer.add(key, b"", extension, {})


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarmonError, match="twice"):
        write(tmp_path / "a.tar", [sample(1), sample(1)])


def test_an_index_of_another_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [sample(1)])
    write(tmp_path / "b.tar", [sample(number) for number in range(9)])
    with pytest.raises(HarmonError, match="does not belong"):
        ImageShard(tmp_path / "a.tar", tmp_path / "b.tar.idx")
    (tmp_path / "b.tar.idx").write_bytes(b"")
    with pytest.raises(HarmonError, match="does not belong"):
        ImageShard(tmp_path / "b.tar", tmp_path / "b.tar.idx")


HEADERS_AND_VIEW = st.integers(0, 300) | st.integers(2 * BLOCK, 3 * BLOCK + 30)


@settings(max_examples=120, deadline=None)
@given(place=HEADERS_AND_VIEW, value=st.integers(0, 255))
def test_damage_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    write(folder / "a.tar", [sample(1)])
    data = bytearray((folder / "a.tar").read_bytes())
    data[place] = value
    (folder / "a.tar").write_bytes(data)
    with contextlib.suppress(HarmonError):
        list(scan(folder / "a.tar"))
    with contextlib.suppress(HarmonError):
        ImageShard(folder / "a.tar", folder / "a.tar.idx").read(0)


@pytest.mark.parametrize("cut", [1, BLOCK, 2 * BLOCK, 3 * BLOCK])
def test_scan_finds_a_truncated_archive(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "a.tar", [sample(1)])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:-cut])
    with pytest.raises(HarmonError):
        list(scan(tmp_path / "a.tar"))


@pytest.mark.parametrize("size", range(PIECE - BLOCK, PIECE + 4 * BLOCK, BLOCK))
def test_the_end_is_found_wherever_the_pieces_of_reading_part_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.tar"
    write(path, [sample(1, bytes(size - 5 * BLOCK))])  # two headers, the view and the end are five blocks
    data = path.read_bytes()
    assert len(data) == size
    assert [key for _, key in scan(path)] == [sample(1).key]
    for damaged in (data[:-BLOCK], data[:-1] + b"x", data + bytes(BLOCK)):
        path.write_bytes(damaged)
        with pytest.raises(HarmonError, match=r"the archive ends at|nor the archive's end"):
            list(scan(path))


def test_a_view_may_be_longer_than_a_piece_and_none_is_longer_than_readers_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [Image(f"{number:032x}", "jpg", b"data", {"caption": "x" * (2 * PIECE + number)}) for number in range(3)]
    writer = write(tmp_path / "a.tar", samples)
    assert [key for _, key in scan(tmp_path / "a.tar")] == writer.keys
    with ShardWriter(tmp_path / "b.tar") as refusing, pytest.raises(HarmonError, match="too large"):
        refusing.add("0" * 32, b"data", "jpg", {"caption": "x" * MAX_VIEW})
    monkeypatch.setattr("pipelines.archive.MAX_VIEW", PIECE)
    with pytest.raises(HarmonError, match="no JSON object"):
        list(scan(tmp_path / "a.tar"))


VIEWS = (b"{}", b'{"n": 123456789012345678901234567890}', b'{"a": 1, "a": [{}]}', b'{"a": NaN}', b'{"a": "\\ud800"}')
NO_VIEWS = (b"", b"[]", b"1", b" {}", b"{} ", b'{"a": 1', b"\xff", b'{"a": "\xff"}', b'{"a": "\n"}', b"{}{}")


@pytest.mark.parametrize("view", VIEWS + NO_VIEWS)
def test_an_archive_is_taken_with_the_views_that_readers_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: bytes
) -> None:
    path = tmp_path / "a.tar"
    monkeypatch.setattr("pipelines.shards.canonical_json", lambda _: view)
    write(path, [sample(1)])
    if view in VIEWS:
        assert ImageShard(path, index_path(path)).read(0).key == sample(1).key
        assert [key for _, key in scan(path)] == [sample(1).key]
        return
    with pytest.raises(HarmonError, match="no JSON object"):
        ImageShard(path, index_path(path)).read(0)
    with pytest.raises(HarmonError, match="no JSON object"):
        list(scan(path))


@given(at=st.integers(0, BLOCK - 1), byte=st.integers(0, 255), size=st.integers(0, 8**11 - 1))
@settings(max_examples=300)
def test_a_header_tells_its_size_only_as_it_was_made(at: int, byte: int, size: int) -> None:
    made = header("0" * 32, "json", size)
    other = made[:at] + bytes([byte]) + made[at + 1 :]
    assert size_of(other, "0" * 32, "json") == (size if other == made else None)
    assert (member(other) is None) == (other != made)
    for block, key, extension in ((made[:-1], "0" * 32, "json"), (made, "1" * 32, "json"), (made, "0" * 32, "jpg")):
        assert size_of(block, key, extension) is None


@pytest.mark.parametrize("size", [BATCH - 1, BATCH, 3 * BATCH + 1, *range(BATCH - 5 * BLOCK, BATCH, BLOCK)])
def test_samples_come_back_wherever_the_pieces_of_writing_part_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("pipelines.shards.AHEAD", 2 * BATCH)  # so that space is asked for more than once
    path = tmp_path / "a.tar"
    samples = [sample(number, random.Random(number).randbytes(size)) for number in range(3)]
    writer = write(path, samples)
    assert writer.tar_sha256 == sha256_hex(path.read_bytes())
    assert [key for _, key in scan(path)] == writer.keys  # so the file ends where the archive does
    shard = ImageShard(path, index_path(path))
    assert [shard.read(row) for row in range(len(shard))] == samples


def test_a_shard_that_the_disk_refused_cannot_be_closed_as_if_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = ShardWriter(tmp_path / "00000.tar")
    with monkeypatch.context() as patched:
        patched.setattr(os, "writev", full)
        with pytest.raises(HarmonError, match="cannot be written: No space"):
            writer.add("0" * 32, bytes(3 << 20), "jpg", {})
    with pytest.raises(HarmonError, match="not written to its end"):
        writer.close()


@given(
    sizes=st.lists(st.sampled_from([0, 1, 511, 4096, 300_000, 1 << 20, 3 << 20]), min_size=1, max_size=12),
    data=st.data(),
)
@settings(deadline=None, max_examples=20)
def test_calls_that_fall_short_lose_and_double_nothing(sizes: list[int], data: st.DataObject) -> None:
    def short(descriptor: int, parts: list[bytes]) -> int:
        whole = b"".join(parts)
        return os.write(descriptor, whole[: data.draw(st.integers(0, len(whole)))])

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "writev", short)
        path = Path(folder) / "00000.tar"
        with ShardWriter(path) as writer:
            for number, size in enumerate(sizes):
                writer.add(f"{number:032x}", bytes([number + 1]) * size, "jpg", {"n": number})
        assert hashlib.sha256(path.read_bytes()).hexdigest() == writer.tar_sha256
        shard = ImageShard(path, index_path(path))
        assert [shard.raw(row).data for row in range(len(sizes))] == [bytes([n + 1]) * s for n, s in enumerate(sizes)]
        shard.close()
