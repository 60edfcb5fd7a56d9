"""Downloads that are killed, hang or lose the network: what stands stays, the rest is fetched again."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import catalogue, fetch
from pipelines.audit import audit
from pipelines.columns import LIST_SCHEMA
from pipelines.dataset import Dataset
from pipelines.download import DownloadSettings, download
from pipelines.errors import HarmonError
from pipelines.fetch import Engine, FetchSettings
from pipelines.guard import Guard
from pipelines.outage import Watch, is_outage
from pipelines.redo import redo
from pipelines.rules import Rules
from pipelines.steps import Progress
from pipelines.traffic import Live, Meter, Traffic
from tests.parts import need
from tests.pipelines.misbehaving import KINDS, Site, misbehave, picture, write_list

KILLS = 20 if os.environ.get("HARMON_SOAK") else 3
ROWS, SHARD = 240, 40
SOURCE = catalogue.source("scenes")
HOW = FetchSettings(timeout=5, retries=1, per_host=64, per_second=1e5, patience=20, threads=8)
BAD = {name: KINDS[name] for name in ("secret", "html", "turned", "noai", "file")}  # bad for good, and cheap


def what(engine: Engine) -> DownloadSettings:
    return DownloadSettings(rows_per_shard=SHARD, allow=("127.0.0.1/32",), max_bytes=1 << 20, engine=engine)


@dataclass(frozen=True)
class Web:
    """A slow server, a list of links to it, and what an undisturbed download makes of them."""

    site: Site
    links: Path
    content_hash: str
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    need(
        Path(os.environ.get(fetch.INTERPRETER) or fetch.DEFAULT_INTERPRETER).exists(),
        "img2dataset is not installed: run `make img2dataset`",
    )
    folder = tmp_path_factory.mktemp("undisturbed")
    with misbehave() as site:
        site.delay = 0.05
        links = folder / "list.parquet"
        write_list(links, site.port, ROWS, BAD)
        good_on_loopback(links)
        seconds, hashes = {}, set()
        engines: tuple[Engine, ...] = ("img2dataset", "native")
        for engine in engines:
            began = time.monotonic()
            hashes.add(download(Dataset(folder / engine / "scenes"), SOURCE, links, what(engine), HOW).content_hash)
            seconds[engine] = time.monotonic() - began
        assert len(hashes) == 1
        yield Web(site, links, hashes.pop(), seconds)


def good_on_loopback(links: Path) -> None:
    """Names below .test need the lying name server; here the good links name the address."""
    table = pq.read_table(links)
    urls = [url.replace(url.split("/")[2].rpartition(":")[0], "127.0.0.1") for url in table["url"].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("url"), "url", pa.array(urls)), links)


def processes_below(folder: Path) -> list[int]:
    """Processes that work in `folder`: the engine and its workers."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * KILLS)
@pytest.mark.parametrize("engine", ["img2dataset", "native"])
def test_a_downloader_killed_at_any_moment_and_run_again_makes_the_same_dataset(
    engine: Engine, web: Web, tmp_path: Path
) -> None:
    """Now the whole of it is killed, now the engine, now one of its workers."""
    draw, web.site.delay = random.Random(20250321), 0.2
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        root = tmp_path / f"round-{rounds}" / "scenes"
        script = (
            "from tests.pipelines.test_interrupted_download import *\n"
            f"download(Dataset({str(root)!r}), SOURCE, Path({str(web.links)!r}), what({engine!r}), HOW)"
        )
        for _ in range(3):
            flow = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
            if kills % 2:  # at a random moment, or at one when a random number of shards stand
                time.sleep(draw.uniform(0.5, 1.0 + web.seconds[engine]))
            else:
                shards = draw.randrange(ROWS // SHARD)
                while flow.poll() is None and len(list(root.glob("steps/*/[0-9]*.json"))) < shards:
                    time.sleep(0.02)
                time.sleep(draw.uniform(0.0, 0.3))
            inner = processes_below(root)
            victim = flow.pid if draw.random() < 0.5 else draw.choice(inner or [flow.pid])
            stood = len(list(root.glob("steps/*/[0-9]*.json")))
            if flow.poll() is None:
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    victim = 0
                kills += bool(victim)
                who = "everything" if victim == flow.pid else f"one of {len(inner)} processes of {engine}"
                print(f"kill {kills}: {who}, when {stood} of {ROWS // SHARD} shards stood")
            _, said = flow.communicate(timeout=120)
            assert flow.returncode in (0, -signal.SIGKILL), said
            until = time.monotonic() + 20
            while processes_below(root):
                assert time.monotonic() < until, "a process was left behind"
                time.sleep(0.05)
            if Dataset(root).store.is_there():
                assert audit(Dataset(root), deep=True).sound
            if flow.returncode == 0 or kills == KILLS:
                break
        commit = download(Dataset(root), SOURCE, web.links, what(engine), HOW)
        assert commit.content_hash == web.content_hash
        assert audit(Dataset(root), deep=True).sound
    web.site.delay = 0.05


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_its_shard_done_again(web: Web, tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop_one(live: Live) -> None:
        if live.links and not stopped:
            workers = [path for path in tmp_path.glob("**/traffic/*.traffic") if path.stat().st_size]
            stopped.append(int(workers[0].stem))
            os.kill(stopped[0], signal.SIGSTOP)

    web.site.delay, how = 0.3, HOW.model_copy(update={"patience": 10.0})
    commit = download(Dataset(tmp_path / "scenes"), SOURCE, web.links, what("img2dataset"), how, on_live=stop_one)
    web.site.delay = 0.05
    assert stopped and not Path(f"/proc/{stopped[0]}").exists()
    assert commit.content_hash == web.content_hash


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["img2dataset", "native"])
def test_an_outage_in_the_middle_keeps_shards_open_until_the_web_is_back(
    engine: Engine, web: Web, tmp_path: Path
) -> None:
    dataset = Dataset(tmp_path / "scenes")
    stood: list[int] = []
    with misbehave() as site:
        site.delay = 0.05
        links = tmp_path / "list.parquet"
        write_list(links, site.port, ROWS, BAD)
        good_on_loopback(links)

        def cut(progress: Progress) -> None:
            stood.append(progress.shards_done)
            site.stop()

        with pytest.raises(HarmonError, match="looks like an outage"):
            download(dataset, SOURCE, links, what(engine), HOW, cut)
        port = site.port
    assert dataset.head is None and 1 <= len(stood) < ROWS // SHARD
    with pytest.raises(HarmonError, match="not complete"):
        redo(dataset, "failed")
    with misbehave(port):
        redone = redo(dataset, "missing")
        assert redone.asked == ROWS - SHARD * len(stood) == redone.recovered + sum(redone.rejected.values())
        redo(dataset, "transient")  # rows that were under way in a shard of which the outage caught a few only
        undisturbed = Dataset(tmp_path / "undisturbed" / "scenes")
        download(undisturbed, SOURCE, links, what("native"), HOW)
    assert sorted_rows(dataset) == sorted_rows(undisturbed)
    assert audit(dataset, deep=True).sound


def sorted_rows(dataset: Dataset) -> list[object]:
    """What the samples are, wherever they stand."""
    rows = dataset.whole_table("source").to_pylist()
    return sorted(tuple(sorted((name, str(value)) for name, value in row.items())) for row in rows)


OK, DEAD, NAMES = None, "dead_link", "name_server"


@pytest.mark.parametrize(
    ("reasons", "others", "share", "outage"),
    [
        ([DEAD] * 5, True, 0.5, True),  # everything refused
        ([DEAD] * 2, True, 0.5, False),  # a small shard of dead links, while others answer
        ([DEAD] * 2, False, 0.5, True),
        ([OK] * 40 + [DEAD] * 60, True, 0.5, True),  # most of it
        ([OK] * 60 + [DEAD] * 40, True, 0.5, False),  # an old list
        ([OK] * 80 + [NAMES] * 20, True, 0.5, True),  # the name server went away towards the end
        ([OK] * 95 + [NAMES] * 5, True, 0.5, False),
        ([OK] * 91 + [NAMES] * 9, True, 0.5, True),
        ([NAMES] * 4, True, 0.5, True),  # few, but this side's
        ([DEAD] * 3 + ["gone"], True, 0.5, True),
        (["tls"] * 1000, True, 0.5, True),  # a wrong clock, or somebody in between
        (["dropped"] * 1000, True, 0.5, True),
        (["http_502"] * 1000, True, 0.5, True),
        (["http_504"] * 1000, True, 0.5, True),
        (["http_530"] * 1000, True, 0.5, True),
        (["forbidden_address"] * 1000, True, 0.5, True),  # what a captive portal's name server says
        (["forbidden_port"] * 10, False, 0.5, False),  # told by the link alone
        (["forbidden_port"] * 10 + [DEAD] * 5, True, 0.5, True),
        (["http_403"] + ["tls"] * 4, False, 0.5, False),
        ([OK] * 60 + ["timeout"] * 40, True, 0.5, True),  # so many that may pass
        ([OK] * 80 + ["timeout"] * 20, True, 0.5, False),
        ([OK] * 60 + ["timeout"] * 40, True, 0.9, False),
        ([], False, 0.5, False),
        (["http_404"] * 100, True, 0.5, False),  # an answer is an answer
        (["http_429"] * 100, True, 0.5, True),  # the host wants no more for now
        ([DEAD] * 100, False, 1.0, False),  # dead indeed, says the recipe
    ],
)
def test_an_outage_is_told_from_dead_links(reasons: list[str | None], others: bool, share: float, outage: bool) -> None:
    assert is_outage(reasons, others, share) == outage


def small_list(path: Path, urls: list[str]) -> Path:
    rows = [{"row_id": str(n), "url": url, "task": "text2image"} for n, url in enumerate(urls)]
    pq.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA), path)
    return path


def test_a_few_dead_links_are_believed_where_later_shards_answer(tmp_path: Path) -> None:
    settings = what("native").model_copy(update={"rows_per_shard": 2})
    with misbehave() as site:
        urls = ["http://127.0.0.1:9/1", "http://127.0.0.1:9/2"]  # the first shard, which may land before any answer
        urls += [f"http://127.0.0.1:{site.port}/good/{n}" for n in range(4)]
        commit = download(Dataset(tmp_path / "d"), SOURCE, small_list(tmp_path / "list.parquet", urls), settings, HOW)
    assert (commit.rows_out, dict(commit.rejected)) == (4, {"dead_link": 2})


def test_what_answered_in_an_earlier_run_says_nothing_about_a_few_links_now(tmp_path: Path) -> None:
    settings, dataset = what("native").model_copy(update={"rows_per_shard": 2}), Dataset(tmp_path / "d")

    class Stopped(Exception):
        pass

    def stop(_: Progress) -> None:
        raise Stopped

    with misbehave() as site:
        links = small_list(tmp_path / "list.parquet", [f"http://127.0.0.1:{site.port}/good/{n}" for n in range(4)])
        with pytest.raises(Stopped):
            download(dataset, SOURCE, links, settings, HOW, stop)
    assert len(list((tmp_path / "d").glob("steps/*/0*.json"))) == 1
    with pytest.raises(HarmonError, match="looks like an outage"):
        download(dataset, SOURCE, links, settings, HOW)
    assert dataset.head is None


def test_only_an_answer_of_this_run_says_that_others_answer() -> None:
    watch = Watch(0.5)
    assert watch.is_cut_off([DEAD, DEAD])
    assert not watch.is_cut_off([OK, DEAD]) and not watch.is_cut_off([DEAD, DEAD])
    assert watch.is_cut_off([NAMES])


def test_canaries_alone_say_whether_a_retry_met_an_outage() -> None:
    assert not Watch(0.5).is_cut_off([DEAD] * 100, [OK] * 6 + ["http_404", "timeout"])
    assert not Watch(0.5).is_cut_off([NAMES] * 100, ["http_404"])
    assert Watch(0.5).is_cut_off(["http_404"] + [DEAD] * 99, [DEAD] * 8)
    assert Watch(0.5).is_cut_off([DEAD] * 100, [OK] * 2 + [NAMES] * 6)


def test_an_engine_waits_while_much_has_landed_and_nobody_has_stored_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "BACKLOG", 3)
    shards, seen = 60, []

    def waiting() -> int:
        return len(list(tmp_path.glob("land/*/out/*_stats.json")))

    with misbehave() as site:
        site.delay = 0.01
        links = {
            shard: fetch.write_links(
                tmp_path / f"{shard}.links", [f"http://127.0.0.1:{site.port}/good/{shard}-{n}" for n in range(5)]
            )
            for shard in range(shards)
        }
        rules, how = Rules(allow=("127.0.0.1/32",)), HOW.model_copy(update={"processes": 1})
        for landed in fetch.fetch(links, tmp_path / "land", rules, how, "native"):
            while landed.shard == 0 and waiting() < 6:
                time.sleep(0.01)
            if landed.shard == 1:  # now it is held; what is under way may still land
                before = waiting()
                time.sleep(1.5)
                assert waiting() <= before + 2 < shards - 1
            assert landed.reasons() == [None] * 5
            landed.drop()
            seen.append(landed.shard)
    assert seen == list(range(shards))


def test_a_guard_takes_up_no_link_while_it_is_held(tmp_path: Path) -> None:
    slept: list[float] = []
    with misbehave() as site:
        traffic = Traffic(tmp_path)
        traffic.hold(True)

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            traffic.hold(len(slept) < 3)

        guard = Guard(Rules(allow=("127.0.0.1/32",)), sleep=sleep, meter=Meter(tmp_path))
        assert guard.open(f"http://127.0.0.1:{site.port}/good/1").read() == picture("1")
    traffic.follow()
    assert len(slept) == 3 and traffic.live().links == 1
    assert not Meter(tmp_path).held
    os.utime(tmp_path / "alive", (0, 0))  # the supervisor has been storing for long
    assert Meter(tmp_path).held
    traffic.hold(False)
    assert not Meter(tmp_path).held


def test_live_counts_survive_torn_lines_and_name_the_worst_hosts(tmp_path: Path) -> None:
    traffic, meter = Traffic(tmp_path), Meter(tmp_path)
    for host, reason in [("a", ""), ("b", "timeout"), ("b", "timeout"), ("b", "http_404"), ("c", "tls"), ("c", "")]:
        meter.begin()
        meter.end(host, reason, 0 if reason else 1000)
    file = tmp_path / f"{os.getpid()}.traffic"
    data = file.read_bytes()
    for length in (7, len(data) - 3, len(data)):
        file.write_bytes(data[:length])
        traffic.follow()
    live = traffic.live()
    assert (live.links, live.pictures, live.bytes) == (6, 2, 2000)
    assert live.worst == (("b", 3, 3, "timeout"), ("c", 1, 2, "tls"))
    assert "b 3/3 timeout" in live.sentence() and "33.3 % fetched" in live.sentence()


def test_a_silent_worker_is_killed_and_a_stranger_with_its_number_is_not(tmp_path: Path) -> None:
    script = "sleep 60 & echo $!; wait $!; echo killed; sleep 60"
    engine = subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE, text=True)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert engine.stdout is not None
        traffic = Traffic(tmp_path)
        for worker in (int(engine.stdout.readline()), stranger.pid):
            (tmp_path / f"{worker}.traffic").write_text("a.example\t\t1\t3\n")  # three links under way
        traffic.follow()
        time.sleep(0.01)
        assert fetch._kill_silent(traffic, 0.0, engine.pid) == 2  # neither will land another shard
        assert engine.stdout.readline() == "killed\n" and stranger.poll() is None
    finally:
        os.killpg(engine.pid, signal.SIGKILL)
        stranger.kill()
        engine.wait()
        stranger.wait()


def test_a_worker_is_silent_only_with_links_under_way(tmp_path: Path) -> None:
    traffic, meter = Traffic(tmp_path), Meter(tmp_path)
    meter.begin()
    meter.end("a", "", 1)
    traffic.follow()
    assert traffic.silent(0.0) == []
    meter.begin()
    meter.begin()
    meter.end("a", "", 1)
    traffic.follow()
    time.sleep(0.01)
    assert traffic.silent(60.0) == []
    assert traffic.silent(0.0) == [os.getpid()]
    assert traffic.silent(0.0) == []
