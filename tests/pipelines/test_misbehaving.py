"""Five thousand links to a server that misbehaves: each row ends once, and no forbidden address is reached."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import catalogue, fetch
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings, download
from pipelines.fetch import Engine, FetchSettings
from pipelines.traffic import Live
from tests.parts import need
from tests.pipelines.misbehaving import BARRED, KINDS, Site, misbehave, write_list

ROWS = 5000
SOURCE = catalogue.source("scenes")
WHAT = DownloadSettings(rows_per_shard=250, allow=("127.0.0.1/32",), max_bytes=1 << 20)
HOW = FetchSettings(timeout=10, max_seconds=10, retries=1, per_host=64, per_second=1e5)
LAUNCHER = Path(__file__).with_name("flipping_names.py")


@dataclass(frozen=True)
class Done:
    """What an engine made of the list, and what the server saw of it."""

    site: Site
    dataset: Dataset
    expected: dict[str, str | None]
    live: list[Live]


@pytest.fixture(scope="module", params=["img2dataset", "native"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    yield fetched(request.param, tmp_path_factory.mktemp(request.param))


def fetched(engine: Engine, folder: Path) -> Done:
    need(
        Path(os.environ.get(fetch.INTERPRETER) or fetch.DEFAULT_INTERPRETER).exists(),
        "img2dataset is not installed: run `make img2dataset`",
    )
    live: list[Live] = []
    with misbehave(PORTS.get("port", 0)) as site, pytest.MonkeyPatch.context() as patch:
        PORTS["port"] = site.port
        patch.setattr(fetch, "LANDING", LAUNCHER)
        expected = write_list(folder / "list.parquet", site.port, ROWS)
        dataset = Dataset(folder / "scenes")
        what = WHAT.model_copy(update={"engine": engine})
        download(dataset, SOURCE, folder / "list.parquet", what, HOW, on_live=live.append)
    return Done(site, dataset, expected, live)


PORTS: dict[str, int] = {}  # both engines fetch the same links, so that their datasets can be compared
HASHES: dict[str, str] = {}


@pytest.mark.slow
def test_every_row_is_a_sample_or_a_reject_with_the_expected_reason(done: Done) -> None:
    rejects = done.dataset.rejects().to_pylist()
    kept = done.dataset.whole_table("source").column("row_id").to_pylist()
    ended: dict[str, str | None] = {row["row_id"]: row["reason"] for row in rejects} | dict.fromkeys(kept)
    assert len(rejects) + len(kept) == ROWS
    assert ended == done.expected
    assert set(done.expected.values()) == {None} | {kind.reason for kind in KINDS.values()}


def test_no_forbidden_address_was_connected_to(done: Done) -> None:
    assert done.site.trapped == []
    barred = {"0.0.0.0", "169.254.169.254", "meta.test", "both.test", "mapped.test", *BARRED}
    assert barred.isdisjoint(done.site.hosts)
    assert not [host for host in done.site.hosts if host.startswith("flop")]


def test_failures_that_pass_are_recovered_by_asking_again(done: Done) -> None:
    for kind in ("busy", "broken"):
        asked = [times for path, times in done.site.requests.items() if path.startswith(f"/{kind}/")]
        assert len(asked) == KINDS[kind].share * ROWS // 1000 and set(asked) == {2}
    asked = [times for path, times in done.site.requests.items() if path.startswith("/missing/")]
    assert set(asked) == {1}


def test_a_reject_names_the_http_status_where_there_was_one(done: Done) -> None:
    for row in done.dataset.rejects().to_pylist():
        answered = row["reason"] in {"too_large", "not_an_image", "truncated", "opted_out"}
        status = row["reason"][5:] if row["reason"].startswith("http_") else "200" if answered else None
        assert row["detail"].startswith(f"HTTP {status}: ") if status else "HTTP 2" not in row["detail"]


def test_the_dataset_is_sound_and_the_live_counts_are_whole(done: Done) -> None:
    assert audit(done.dataset, deep=True).sound
    last = done.live[-1]
    unasked = sum(reason == "bad_url" for reason in done.expected.values())
    assert last.links == ROWS - unasked
    assert 0 < last.success_rate < 1 and last.pictures < last.links and len(last.worst) == 10
    (host, failed, asked, _), *others = last.worst
    assert host == "127.0.0.1" and 0 < failed < asked
    every = KINDS["meta"].share * ROWS // 1000
    assert ("meta.test", every, every, "forbidden_address") in others


def test_both_engines_make_the_same_dataset(done: Done) -> None:
    head = done.dataset.head
    assert head is not None
    HASHES[done.dataset.root.parent.name] = head.content_hash  # type: ignore[union-attr]
    assert len(set(HASHES.values())) == 1
