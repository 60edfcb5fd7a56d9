"""Which rows hold a dense caption: what the catalogue says of their source, or their task where it knows none."""

import functools

from pipelines.catalogue import names, source


def is_dense(of: str, task: str) -> bool:
    """Whether the caption of a row is dense; `of`: its source, `task`: the row's own.

    A source's captions are those of the rows of its catalogue entry's task: PD12M's are dense and serve
    text2image; the scenes have class names beside dense ones. A source that the catalogue does not know has its
    dense captions in the rows that are read, image2text.
    """
    return task == _dense_task(of)


@functools.cache
def _dense_task(of: str) -> str | None:
    if of not in names():
        return "image2text"
    entry = source(of)
    return entry.task if entry.captions.kind == "dense" or entry.captions.rewrite else None
