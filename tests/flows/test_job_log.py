"""The log of a job reaches its follower line by line, each once, also through a stream that breaks."""

import time
from collections.abc import AsyncIterator

import pytest

from flows import job_log
from flows.job_log import LINE, streamed


def test_lines_are_told_once_where_the_stream_breaks_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "AGAIN_SECONDS", 0.01)
    broken = iter([True, True, False])

    async def chunks() -> AsyncIterator[str]:
        breaks = next(broken)
        yield "first\nsec"
        if breaks:
            raise RuntimeError("the socket closed")
        yield f"ond\n{'long' * LINE}\nlast"

    told: list[str] = []
    deadline = time.monotonic() + 30
    with streamed(chunks, told.append):
        while "last" not in told:
            assert time.monotonic() < deadline, told
            time.sleep(0.01)
    assert told == ["first", "second", ("long" * LINE)[:LINE], "last"]
