"""Who may ask: a key, and on a machine's own address without one, nobody's web page."""

from __future__ import annotations

import hashlib
import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harmon.serving.metrics import Metrics
from harmon.serving.refusal import Refused

OPEN = ("/", "/health")
"""Without a key: the page, which holds nothing but a form, and what a load balancer asks."""
ROUTES = (*OPEN, "/metrics", "/v1/models", "/v1/chat/completions", "/v1/images/generations")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Access:
    """Asks each request for the key, before anything of its body is read, and counts it."""

    def __init__(self, app: ASGIApp, key: str | None, loopback: bool, metrics: Metrics) -> None:
        """`loopback`: only requests to this machine's own names are answered. A page elsewhere whose name is made to
        lead here (DNS rebinding) sends its own.
        """
        self.app, self.loopback, self.metrics = app, loopback, metrics
        self.digest = None if key is None else hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), [499]  # where no answer began, the client went away
        path = scope["path"]
        route = path if path in ROUTES else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            refused = self._refusal(scope)
            app = self.app if refused is None else refused.response()
            await app(scope, receive, counted)
        except Exception:
            status[0] = 500
            raise
        finally:
            self.metrics.requests.labels(route, str(status[0])).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - began)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = dict(scope["headers"])  # the last of a name counts, for all that follows
        if self.loopback and _without_port(headers.get(b"host", b"").decode("latin-1")) not in LOOPBACK:
            return Refused(421, "This server answers to the names of its own machine alone.", code="wrong_host")
        if self.digest is None or scope["path"] in OPEN:
            return None
        given = headers.get(b"authorization", b"")
        key = given[7:] if given[:7].lower() == b"bearer " else b""
        # digests have one length, so that the time tells nothing of the key, its length included
        if hmac.compare_digest(hashlib.sha256(key).digest(), self.digest):
            return None
        return Refused(
            401,
            "The API key is missing or wrong; send it as Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _without_port(host: str) -> str:
    return f"{host.partition(']')[0]}]" if host.startswith("[") else host.partition(":")[0]
