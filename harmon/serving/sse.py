"""Server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from harmon.serving.refusal import Refused, too_late
from harmon.serving.running import Running, unless_gone

Chunks = Callable[[Running], AsyncGenerator[bytes, None]]


def event(data: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"


class EventStream(Response):
    """What `chunks` makes of the jobs' events. It ends in an error event where they fail or take longer than `seconds`,
    and the jobs are cancelled when the client goes away.
    """

    media_type = "text/event-stream"

    def __init__(self, one: Running, chunks: Chunks, seconds: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # nginx would hold it back
        del self.headers["content-length"]
        self.one, self.chunks, self.seconds = one, chunks, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_gone(receive, self._send(send))
        finally:
            self.one.close()

    async def _send(self, send: Send) -> None:
        def body(data: bytes, more: bool = True) -> dict[str, Any]:
            return {"type": "http.response.body", "body": data, "more_body": more}

        try:
            async with asyncio.timeout(self.seconds), aclosing(self.chunks(self.one)) as chunks:
                async for chunk in chunks:
                    await send(body(chunk))
        except TimeoutError:
            await send(body(event(too_late(self.seconds).body())))
        except Refused as refused:
            await send(body(event(refused.body())))
        await send(body(b"", more=False))
