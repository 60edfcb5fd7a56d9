"""A chat completions server that holds no model: it answers after a set time, and misbehaves on purpose where asked.

`simulator(behave)` runs one in a thread of the test; `python -m tests.recaption.simulator SECONDS` runs one as a
process that answers every request after SECONDS, for what is measured.
"""

import asyncio
import json
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MODEL = "tiny"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 503: "Service Unavailable"}


@dataclass(frozen=True)
class Reply:
    """What comes back for one request, and how."""

    body: bytes
    status: int = 200
    after: float = 0.0  # seconds
    cut: int | None = None  # the connection ends after so many bytes of the body
    drip: float = 0.0  # seconds between bytes
    headers: tuple[str, ...] = ()


Behaviour = Callable[[str], Reply]  # the message -> what comes back


def completion(text: str, after: float = 0.0, finish: str = "stop") -> Reply:
    """A good answer."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Reply(json.dumps({"choices": [choice], "usage": usage}).encode(), after=after)


def rewritten(message: str) -> str:
    """A caption that passes the checks and depends on the message alone."""
    letters = f"{zlib.crc32(message.encode()):08x}".translate(str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst"))
    return f"A quiet picture called {letters}."


@dataclass
class Seen:
    """What the server saw."""

    messages: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    now: int = 0
    most: int = 0
    """In flight: at this moment, and at most."""
    health: int = 200
    """Status of /health, for a test to set."""


class Connection(asyncio.Protocol):
    """HTTP/1.1 with a body of stated length, kept alive: as much of it as the client speaks."""

    def __init__(self, behave: Behaviour, seen: Seen, connections: "set[Connection]", remember: bool) -> None:
        self.behave, self.seen, self.connections, self.remember = behave, seen, connections, remember
        self.data = b""
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.connections.add(self)

    def connection_lost(self, problem: Exception | None) -> None:
        self.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.data[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(self.data) < end + 4 + length:
            return
        line, body = self.data.partition(b"\r\n")[0].decode(), self.data[end + 4 : end + 4 + length]
        self.data = b""
        self.respond(line, body)

    def respond(self, line: str, body: bytes) -> None:
        method, path, _ = line.split()
        if path == "/v1/models":
            return self.write(Reply(json.dumps({"data": [{"id": MODEL}]}).encode()))
        if path == "/version":
            return self.write(Reply(b'{"version": "0.0-simulated"}'))
        if path == "/health":
            return self.write(Reply(b"", status=self.seen.health))
        if path == "/seen":
            return self.write(Reply(json.dumps({"requests": self.seen.requests, "most": self.seen.most}).encode()))
        assert (method, path) == ("POST", "/v1/chat/completions"), line
        asked = json.loads(body)
        content = asked["messages"][0]["content"]
        message = content if isinstance(content, str) else content[-1]["text"]
        self.seen.requests += 1
        self.seen.now += 1
        self.seen.most = max(self.seen.most, self.seen.now)
        if self.remember:
            self.seen.messages[message] += 1
            self.seen.bodies.append(asked)
        reply = self.behave(message)
        self.loop.call_later(reply.after, self.finish, reply)

    def finish(self, reply: Reply) -> None:
        self.seen.now -= 1
        if not self.transport.is_closing():
            self.write(reply)

    def write(self, reply: Reply) -> None:
        extra = "".join(f"{header}\r\n" for header in reply.headers)
        head = f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Said')}\r\n{extra}"
        head += f"Content-Type: application/json\r\nContent-Length: {len(reply.body)}\r\n\r\n"
        if reply.drip:
            self.transport.write(head.encode())
            for place, byte in enumerate(reply.body):
                self.loop.call_later((place + 1) * reply.drip, self.drop, bytes([byte]))
            return
        self.transport.write(head.encode() + reply.body[: reply.cut])
        if reply.cut is not None:
            self.transport.close()

    def drop(self, byte: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(byte)


class Simulator:
    """A server in a thread; it can die, taking its connections with it, and come back at the same address."""

    def __init__(self, behave: Behaviour) -> None:
        self.seen = Seen()
        self._behave = behave
        self._connections: set[Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server
        self.port = 0
        self.come_back()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def die(self) -> None:
        """Every connection breaks, and no new one is accepted."""

        async def close() -> None:
            self._server.close()
            for connection in list(self._connections):
                connection.transport.abort()

        self._run(close())

    def come_back(self) -> None:
        """Accept connections again."""

        async def listen() -> None:
            self._server = await self._loop.create_server(
                lambda: Connection(self._behave, self.seen, self._connections, True),
                "127.0.0.1",
                self.port,
                backlog=512,
            )
            self.port = self._server.sockets[0].getsockname()[1]

        self._run(listen())

    def end(self) -> None:
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, what: Any) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(what, self._loop)
        done.result(10)


@contextmanager
def simulator(behave: Behaviour = lambda message: completion(rewritten(message))) -> Iterator[Simulator]:
    """A server that answers each message as `behave` says."""
    server = Simulator(behave)
    try:
        yield server
    finally:
        server.end()


async def serve(seconds: float) -> None:
    """Answer every request after `seconds`; the address stands in the first line of stdout."""
    seen, connections = Seen(), set[Connection]()

    def behave(message: str) -> Reply:
        return completion(rewritten(message), after=seconds)

    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(behave, seen, connections, False), "127.0.0.1", 0, backlog=1024
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
