"""Asking again: what failed, what may work now, what is still open; through `harmon download DATASET --only …`."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from flows.catalogue_commands import download as command
from flows.terminal import table_of
from pipelines import catalogue, fetch
from pipelines.audit import audit
from pipelines.columns import LIST_SCHEMA
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings, _Log, download
from pipelines.errors import HarmonError
from pipelines.fetch import FetchSettings
from pipelines.forget import forget
from pipelines.outage import FEW
from pipelines.redo import CANARIES, redo, rejected_now
from pipelines.request import Request
from pipelines.steps import Step, StepRun
from pipelines.traffic import Live
from tests.pipelines.misbehaving import KINDS, Site, misbehave, write_list
from tests.pipelines.test_misbehaving import LAUNCHER

ROWS = 200
SOURCE = catalogue.source("scenes")
WHAT = DownloadSettings(rows_per_shard=64, allow=("127.0.0.1/32",), max_bytes=1 << 20, engine="native")
HOW = FetchSettings(timeout=5, max_seconds=4, retries=0, per_host=64, per_second=1e5)
PASSING = ("down", "drip", "short", "reset")
LASTING = ("missing", "html", "noai", "closed", "user", "inner", "file")


@dataclass(frozen=True)
class Begun:
    """A dataset whose download has ended, with links that failed while servers were down."""

    site: Site
    dataset: Dataset
    links: Path
    expected: dict[str, str | None]

    def rows(self, reasons: set[str | None]) -> set[str]:
        return {row_id for row_id, reason in self.expected.items() if reason in reasons}


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begun]:
    monkeypatch.setattr(fetch, "LANDING", LAUNCHER)
    with misbehave() as site:
        links, dataset = tmp_path / "list.parquet", Dataset(tmp_path / "scenes")
        kinds = {name: KINDS[name] for name in (*PASSING, *LASTING)}
        expected = write_list(links, site.port, ROWS, kinds)
        download(dataset, SOURCE, links, WHAT, HOW)
        yield Begun(site, dataset, links, expected)


def kept(dataset: Dataset) -> set[str]:
    return set(dataset.whole_table("source").column("row_id").to_pylist())


def run(dataset: Dataset, *options: str) -> Result:
    return CliRunner().invoke(command, [str(dataset.root), *options], catch_exceptions=False)


def test_transient_failures_come_when_the_servers_are_back_and_nothing_else_is_asked(begun: Begun) -> None:
    dataset, site = begun.dataset, begun.site
    first = dataset.head
    assert first is not None and kept(dataset) == begun.rows({None})
    assert redo(dataset, "missing").asked == 0
    passing = begun.rows({"http_503", "timeout", "dropped"})
    still = redo(dataset, "transient")  # they are still down
    assert (still.asked, still.recovered) == (len(passing), 0) and len(passing) >= 6
    site.well = True
    site.requests.clear()
    result = run(dataset, "--only", "transient", "--json")
    assert json.loads(result.stdout) == {
        "dataset": "scenes",
        "only": "transient",
        "asked": len(passing),
        "recovered": len(passing),
        "rejected": {},
    }
    assert {path.split("/")[1] for path in site.requests} - {"good"} == set(PASSING)  # good ones are the canaries
    assert kept(dataset) == begun.rows({None}) | passing
    assert len(dataset.whole_table("source")) == len(kept(dataset))
    assert audit(dataset, deep=True).sound
    assert redo(dataset, "transient").asked == 0
    again = dataset.commits()[-1]
    assert (again.step, again.rows_in, again.rows_out) == ("retry", len(passing), len(passing))
    assert dataset.commit(0).content_hash == first.content_hash


def test_failed_asks_for_every_link_that_may_be_asked_and_records_why_it_failed_again(begun: Begun) -> None:
    dataset = begun.dataset
    begun.site.well = True
    lasting = begun.rows({"http_404", "not_an_image", "opted_out", "dead_link", "forbidden_address"})
    passing = begun.rows({"http_503", "timeout", "dropped"})
    by_redirect = {row_id for row_id in begun.expected if row_id.startswith("file-")}  # what it leads to may change
    redone = redo(dataset, "failed")
    assert redone.recovered == len(passing)
    assert redone.asked == len(passing) + len(lasting) + len(by_redirect)
    assert sum(redone.rejected.values()) == len(lasting) + len(by_redirect)
    assert "user" not in {row_id.split("-")[0] for row_id in _last_rejects(dataset)["retry"]}
    assert by_redirect < set(_last_rejects(dataset)["retry"])
    assert audit(dataset, deep=True).sound
    assert redo(dataset, "failed", engine="native").asked == len(lasting) + len(by_redirect)


def _last_rejects(dataset: Dataset) -> dict[str, list[str]]:
    rejects: dict[str, list[str]] = {}
    for row in dataset.rejects().to_pylist():
        rejects.setdefault(row["step"], []).append(row["row_id"])
    return rejects


def test_a_retry_that_is_interrupted_goes_on_with_the_shards_that_are_open(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def stop(_: object) -> None:
        raise Killed

    begun.site.well = True
    with pytest.raises(Killed):
        redo(begun.dataset, "failed", on_progress=stop)
    assert len(begun.dataset.commits()) == 1
    redone = redo(begun.dataset, "failed")
    assert redone.recovered == len(begun.rows({"http_503", "timeout", "dropped"}))
    assert audit(begun.dataset, deep=True).sound


def test_dead_links_are_told_from_an_outage_by_links_that_answered_before(begun: Begun) -> None:
    """All that is asked again fails for good; only with the servers gone too does it stay open."""
    dataset = begun.dataset
    only_dead = {f"dead-{n}" for n in range(2 * FEW)}
    dead = Dataset(dataset.root.parent / "dead")
    rows = [row for row in pq.read_table(begun.links).to_pylist() if row["row_id"].startswith("good-")]
    rows[5:5] = [{"row_id": one, "url": f"http://127.0.0.1:9/{one}", "task": "text2image"} for one in only_dead]
    pq.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA), begun.links)
    download(dead, SOURCE, begun.links, WHAT, HOW)
    before = dead.total_rows
    begun.site.requests.clear()
    redone = redo(dead, "failed")
    assert (redone.asked, redone.recovered) == (len(only_dead), 0)
    assert sum(times for path, times in begun.site.requests.items() if "/good/" in path) == CANARIES
    assert dead.total_rows == before and audit(dead, deep=True).sound
    begun.site.stop()
    with pytest.raises(HarmonError, match="outage_share=1"):
        redo(dead, "failed")
    assert [commit.step for commit in dead.commits()] == ["download", "retry"]
    believed = run(dead, "--only", "failed", "--fetch", "outage_share=1", "--json")
    assert json.loads(believed.stdout)["asked"] == len(only_dead)


def test_links_that_were_refused_by_a_server_serve_as_well_where_none_gave_a_picture(tmp_path: Path) -> None:
    dataset, links = Dataset(tmp_path / "d"), tmp_path / "list.parquet"
    with misbehave() as site:
        urls = [f"http://127.0.0.1:{site.port}/missing/{n}" for n in range(3)]
        urls += [f"http://127.0.0.1:9/{n}" for n in range(10)]
        rows = [{"row_id": str(n), "url": url, "task": "text2image"} for n, url in enumerate(urls)]
        pq.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA), links)
        with pytest.raises(HarmonError, match="looks like an outage"):
            download(dataset, SOURCE, links, WHAT, HOW)
        download(dataset, SOURCE, links, WHAT, HOW.model_copy(update={"outage_share": 1.0}))
        redone = redo(dataset, "failed", how={"outage_share": 0.5})
        assert redone.rejected == {"dead_link": 10, "http_404": 3}
    with pytest.raises(HarmonError, match="looks like an outage"):
        redo(dataset, "failed", how={"outage_share": 0.5})


def test_rows_that_a_retry_asked_for_again_are_counted_once(begun: Begun) -> None:
    first = dict(begun.dataset.commit(0).rejected)
    assert rejected_now(begun.dataset) == first
    redo(begun.dataset, "transient")
    assert rejected_now(begun.dataset) == first
    begun.site.well = True
    redo(begun.dataset, "transient")
    assert rejected_now(begun.dataset) == {
        reason: count for reason, count in first.items() if reason not in {"http_503", "timeout", "dropped"}
    }


def test_what_was_forgotten_is_not_asked_again(begun: Begun) -> None:
    table = pq.read_table(begun.links).to_pylist()
    url = next(row["url"] for row in table if row["row_id"].startswith("down-"))
    forget(begun.dataset, Request(urls=frozenset([url])))
    begun.site.well = True
    redo(begun.dataset, "transient")
    assert not [row_id for row_id in kept(begun.dataset) if row_id.startswith("down-")]
    assert audit(begun.dataset, deep=True).sound


def test_a_dataset_that_others_have_built_on_is_left_alone(begun: Begun) -> None:
    dataset = begun.dataset
    scored = StepRun(dataset, Step("score", 1, {}))
    for shard in scored.pending(dataset.shard_numbers):
        out = scored.shard(shard)
        out.columns("score", dataset.table("source", shard, ["key", "width"]))
        out.finish(rows_in=dataset.rows(shard))
    scored.commit()
    with pytest.raises(HarmonError, match="score of"):
        redo(dataset, "failed")


def test_a_list_that_changed_or_went_is_named(begun: Begun, tmp_path: Path) -> None:
    begun.links.rename(tmp_path / "moved.parquet")
    with pytest.raises(HarmonError, match="does not exist"):
        redo(begun.dataset, "failed")
    begun.site.well = True
    assert redo(begun.dataset, "transient", links=tmp_path / "moved.parquet").recovered > 0
    table = pq.read_table(tmp_path / "moved.parquet")
    pq.write_table(table.slice(1), begun.links)
    with pytest.raises(HarmonError, match="is not the list"):
        redo(begun.dataset, "failed")


def test_a_folder_without_a_download_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarmonError, match="0 downloads"):
        redo(Dataset(tmp_path / "none"), "missing")


def test_the_command_says_what_came(begun: Begun) -> None:
    begun.site.well = True
    passing = len(begun.rows({"http_503", "timeout", "dropped"}))
    assert f"scenes: {passing} of {passing} rows came now." in run(begun.dataset, "--only", "transient").output
    assert "nothing to ask for again" in run(begun.dataset, "--only", "transient").output
    assert run(begun.dataset, "--only", "some").exit_code == 2


def test_the_live_table_shows_rates_and_hosts() -> None:
    live = Live(
        2.0, 1000, 750, 10**6, 375.0, 2.5e6, (("a.example", 200, 400, "http_404"), ("b.example", 50, 50, "tls"))
    )
    head, *hosts = table_of(live)
    assert head == "1,000 links  375.0 images/s  2.50 MB/s  75.0 % fetched"
    assert [line.split() for line in hosts] == [
        ["200", "of", "400", "failed", "a.example", "http_404"],
        ["50", "of", "50", "failed", "b.example", "tls"],
    ]


def test_a_long_download_logs_how_it_goes_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Live] = []
    log = _Log(told.append)
    with caplog.at_level(logging.INFO, "pipelines.download"):
        for seconds in (1.0, 11.0, 12.0, 25.0):
            log(Live(seconds, 10, 5, 100, 1.0, 10.0, ()))
    assert len(told) == 4 and len(caplog.records) == 2 and "50.0 % fetched" in caplog.text
