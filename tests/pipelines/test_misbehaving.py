"""A server that misbehaves (5,000 links with HARMON_SOAK): each row ends once, no forbidden address is reached."""

import os
from collections import Counter
from collections.abc import Callable
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

ROWS = 5000 if os.environ.get("HARMON_SOAK") else 2000
ENGINES: tuple[Engine, ...] = ("img2dataset", "native")
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
    connected: Counter[str]
    """How often the engine tried to connect to each address, refused attempts included."""


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Engine], Done]:
    """What an engine makes of the list; both get the same links, so that their datasets can be compared."""
    need(
        Path(os.environ.get(fetch.INTERPRETER) or fetch.DEFAULT_INTERPRETER).exists(),
        "img2dataset is not installed: run `make img2dataset`",
    )
    made: dict[Engine, Done] = {}

    def of(engine: Engine) -> Done:
        if engine not in made:
            port = next((done.site.port for done in made.values()), 0)
            made[engine] = _fetched(engine, port, tmp_path_factory.mktemp(engine))
        return made[engine]

    return of


@pytest.fixture(scope="module", params=ENGINES)
def done(request: pytest.FixtureRequest, fetched: Callable[[Engine], Done]) -> Done:
    return fetched(request.param)


def _fetched(engine: Engine, port: int, folder: Path) -> Done:
    live: list[Live] = []
    launcher = watched(folder)
    with misbehave(port) as site, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "LANDING", launcher)
        expected = write_list(folder / "list.parquet", site.port, ROWS)
        dataset = Dataset(folder / "scenes")
        what = WHAT.model_copy(update={"engine": engine})
        download(dataset, SOURCE, folder / "list.parquet", what, HOW, on_live=live.append)
    connected = Counter(launcher.with_suffix(".connected").read_text().split())
    return Done(site, dataset, expected, live, connected)


def watched(folder: Path) -> Path:
    """A launcher of its own, which notes beside itself what is connected to."""
    launcher = folder / LAUNCHER.name
    place = f"Path({str(LAUNCHER)!r}).parents[2]"
    launcher.write_text(LAUNCHER.read_text().replace("Path(__file__).parents[2]", place))
    launcher.with_suffix(".connected").touch()
    return launcher


@pytest.mark.slow
def test_every_row_is_a_sample_or_a_reject_with_the_expected_reason(done: Done) -> None:
    rejects = done.dataset.rejects().to_pylist()
    kept = done.dataset.whole_table("source").column("row_id").to_pylist()
    ended: dict[str, str | None] = {row["row_id"]: row["reason"] for row in rejects} | dict.fromkeys(kept)
    assert len(rejects) + len(kept) == ROWS
    assert ended == done.expected
    assert set(done.expected.values()) == {None} | {kind.reason for kind in KINDS.values()}


def test_no_forbidden_address_was_connected_to(done: Done) -> None:
    assert set(done.connected) == {"127.0.0.1"}  # nothing else was even tried, clouds' metadata among it
    assert done.connected["127.0.0.1"] > 100
    assert done.site.trapped == []
    barred = {"0.0.0.0", "meta.test", "both.test", "mapped.test", *BARRED}
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


def test_both_engines_make_the_same_dataset(fetched: Callable[[Engine], Done]) -> None:
    heads = [fetched(engine).dataset.head for engine in ENGINES]
    assert heads[0] is not None and heads[1] is not None
    assert heads[0].content_hash == heads[1].content_hash
