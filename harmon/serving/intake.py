"""Bodies of requests, bounded in size each and together, and in time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from harmon.serving.refusal import Refused, busy
from harmon.serving.settings import ServingSettings

AGAIN = 1  # seconds after which bodies that were in the way have arrived


class Intake:
    """Counts the bytes of all bodies in hand. For one event loop."""

    def __init__(self, settings: ServingSettings) -> None:
        self.settings, self.held = settings, 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The JSON body of `request`, whose bytes count as long as it is in use.

        Only JSON is taken: a browser asks before it sends that to another site's server, and is told no.

        Raises:
            Refused: it is no JSON by its type (415), too large (413), too slow (408), or one too many (429).
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "Send the body as Content-Type: application/json.", code="unsupported_media_type")
        self._check(_declared(request))
        pieces, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for piece in request.stream():
                    self._check(size + len(piece))
                    if self.held + len(piece) > self.settings.held_bytes:
                        raise busy(AGAIN)
                    pieces.append(piece)
                    size += len(piece)
                    self.held += len(piece)
            yield b"".join(pieces)
        except TimeoutError:
            raise Refused(
                408, f"The body had not come after {self.settings.body_seconds:g} s.", code="timeout"
            ) from None
        finally:
            self.held -= size

    def _check(self, size: int) -> None:
        if size > self.settings.body_bytes:
            raise Refused(
                413, f"The body is larger than the {self.settings.body_bytes:,} bytes taken here.", code="too_large"
            )


def _declared(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
