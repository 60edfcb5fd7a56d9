"""Progress of long work: a bar on a terminal, a line for every tenth elsewhere. All on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def shown_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """What it yields is told how many of how many are done."""
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
