"""Progress of long work: a bar on a terminal, a line for every tenth elsewhere; of a download, its rates and worst
hosts. All on stderr; a flow run around the work listens to its counts too."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipelines.traffic import Live

LIVE_LINES = 10.0  # seconds between two lines about a download where no terminal is
Listener = Callable[[str, int, int], None]
"""Told a label, and how many of how many are done; from whatever thread does the work."""
_listeners: list[Listener] = []


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Whatever progress this process shows within the block, `listener` is told as well."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(label: str, done: int, total: int) -> None:
    """Tell the listeners alone."""
    for listener in _listeners:
        listener(label, done, total)


@contextmanager
def shown_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """What it yields is told how many of how many are done."""
    with _on_stderr(label) as show:

        def tell(done: int, total: int) -> None:
            show(done, total)
            announce(label, done, total)

        yield tell


@contextmanager
def _on_stderr(label: str) -> Iterator[Callable[[int, int], None]]:
    if sys.stderr.isatty():
        with click.progressbar(length=1, label=label, file=sys.stderr, show_pos=True) as bar:

            def show(done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            yield show
        return
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        tenth = 10 * done // total
        if tenth > told:
            told = tenth
            click.echo(f"{label}: {done} of {total}", err=True)

    yield tell


@contextmanager
def shown_live(redraw: bool = True) -> Iterator[Callable[["Live"], None]]:
    """What it yields is told how a download goes: redrawn on a terminal, a line now and then elsewhere.

    Not to be redrawn where others write to the terminal too.
    """
    if redraw and sys.stderr.isatty():
        drawn = 0

        def draw(live: "Live") -> None:
            nonlocal drawn
            lines = table_of(live)
            click.echo(f"\x1b[{drawn}F\x1b[J" if drawn else "", err=True, nl=False)
            click.echo("\n".join(lines), err=True)
            drawn = len(lines)

        yield draw
        return
    told = 0.0
    last: Live | None = None

    def tell(live: "Live") -> None:
        nonlocal told, last
        last = live
        if live.seconds - told >= LIVE_LINES:
            told, last = live.seconds, None
            click.echo(live.sentence(), err=True)

    yield tell
    if last is not None:
        click.echo(last.sentence(), err=True)


def table_of(live: "Live") -> list[str]:
    """A few lines: totals and rates, then the hosts with the most failures."""
    head = (
        f"{live.links:,} links  {live.pictures_per_second:,.1f} images/s  {live.bytes_per_second / 1e6:,.2f} MB/s  "
        f"{100 * live.success_rate:.1f} % fetched"
    )
    hosts = [
        f"  {failed:>7,} of {asked:>7,} failed  {host[:60]}  {reason}" for host, failed, asked, reason in live.worst
    ]
    return [head, *hosts]
