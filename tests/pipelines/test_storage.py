"""Puts create whole files or nothing, never overwrite, and stay inside the root."""

import os
import threading
from pathlib import Path

import pytest

from pipelines.canonical import sha256_hex
from pipelines.disk import LocalStore
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.location import S3Url, location
from pipelines.storage import OtherBytes, StoredFile, is_temporary, open_store


def test_put_creates_the_file_and_says_what_it_holds(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "new" / "root")
    assert store.put("a/b.bin", b"hello") == StoredFile("a/b.bin", 5, sha256_hex(b"hello"))
    assert store.read("a/b.bin") == b"hello"
    assert store.list() == ["a/b.bin"]


def test_put_copies_a_file_and_take_moves_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root")
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)
    stored = store.put("copied", file)
    file.write_bytes(b"x" * 3_000_000)
    assert store.take("taken", file, stored.sha256) == StoredFile("taken", 3_000_000, stored.sha256)
    assert not file.exists()


def test_equal_bytes_are_adopted_and_other_bytes_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    first = store.put("a", b"one")
    assert store.put("a", b"one") == first
    with pytest.raises(OtherBytes, match="never overwritten"):
        store.put("a", b"two")
    assert store.read("a") == b"one"
    assert store.list() == ["a"]


def test_taking_onto_other_bytes_keeps_both_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "root")
    store.put("a", b"one")
    file = tmp_path / "file"
    file.write_bytes(b"two")
    with pytest.raises(OtherBytes):
        store.take("a", file, sha256_hex(b"two"))
    assert file.read_bytes() == b"two"


def test_of_racing_writers_exactly_one_wins(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    outcomes: list[bytes | None] = []

    def race(number: int) -> None:
        content = bytes([number])
        barrier.wait()
        try:
            LocalStore(tmp_path).put("a", content)
            outcomes.append(content)
        except OtherBytes:
            outcomes.append(None)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if outcome is not None]
    assert winners == [LocalStore(tmp_path).read("a")]
    assert LocalStore(tmp_path).list() == ["a"]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a", "a/../b", "a//b", "./a", "a\\b", "a\0b", "a/"])
def test_paths_that_could_leave_the_root_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(HarmonError, match="no path inside"):
        LocalStore(tmp_path).put(path, b"")


@pytest.mark.parametrize("root", ["gs://bucket", Path("gs://bucket"), Path("/out", "s3://bucket"), "file:///tmp"])
def test_a_root_of_another_scheme_is_refused(root: str | Path) -> None:
    with pytest.raises(ConfigurationError, match="name a local folder or s3://bucket/prefix"):
        open_store(root)


@pytest.mark.parametrize("root", ["s3://x/y", "s3://bucket/../other", "s3://bucket/a//b", "s3://Bucket/a", "s3://"])
def test_a_place_that_s3_cannot_have_is_refused(root: str) -> None:
    with pytest.raises(ConfigurationError):
        open_store(root)


def test_a_url_that_went_through_path_is_still_the_url() -> None:
    url = location(Path("s3://bucket/some/name"))
    assert url == S3Url("bucket", "some/name") == location("s3://bucket/some/name/")
    assert (str(url), url.name, str(url.parent), str(url / "x")) == (
        "s3://bucket/some/name",
        "name",
        "s3://bucket/some",
        "s3://bucket/some/name/x",
    )


def test_a_failed_put_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HarmonError, match="No space left"):
        store.put("a", b"one")
    assert store.list() == []


def test_reading_what_is_absent_says_so(tmp_path: Path) -> None:
    with pytest.raises(HarmonError, match="No such file"):
        LocalStore(tmp_path).read("a")


def test_links_are_listed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    assert LocalStore(tmp_path).list() == ["out"]


def test_a_listing_names_files_from_the_root_wherever_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    for path in ("a/b/one", "a/b-two", "a/three", "four"):
        store.put(path, path.encode())
    assert list(store.sizes().items()) == [("a/b-two", 7), ("a/b/one", 7), ("a/three", 7), ("four", 4)]
    assert store.list("a/b") == ["a/b/one"]
    assert store.list("absent") == []
    monkeypatch.chdir(tmp_path)
    assert open_store(Path()).list() == store.list()


def test_temporary_names_are_recognised() -> None:
    assert is_temporary("manifest/.put-00ff.tmp")
    assert not is_temporary("manifest/000000.json")
