"""Fetches many links at a time in one process with aiohttp, in img2dataset's layout and under the same rules.

Links wait for their own host only: a slow one holds up its own links and no others. Connections are kept and used
again; each leads to an address that was checked when it was made (twice: after the name was resolved, and where the
socket is opened). Memory is bounded: a picture beyond SPILL bytes goes to a file until it is complete.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import aiohttp
import pyarrow.parquet as pq
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from pipelines.course import Course
from pipelines.guard import Guard
from pipelines.landed import LandingWriter
from pipelines.politeness import Host, Hosts, Pauses
from pipelines.rules import (
    REDIRECTS,
    FetchError,
    Link,
    Resolve,
    Rules,
    failure_of,
    link_of,
    redirected,
    system_names,
)
from pipelines.traffic import HELD, Meter

NAMES = 64  # names that are asked for at a time
PLAIN = 16  # links that aiohttp does not understand and http.client fetches at a time
REMEMBERED = 60  # seconds that a checked address serves new connections to its name
KEPT_ALIVE = 10.0  # seconds that an idle connection is kept
SPILL = 1 << 20  # bytes of a picture that are held in memory
COPY = 1 << 20  # bytes copied at a time from a file


def fetch_all(
    rules: Rules, meter: Meter, pauses: Pauses, inputs: str, output: str, connections: int, shards: int, digits: int
) -> None:
    """Fetch the lists NNNNNN.parquet below `inputs`, in order, into shards below `output`.

    `connections` bounds those open at a time, `shards` those begun and not complete; `digits` are of a position.
    """
    lists = sorted(Path(inputs).glob("*.parquet"))
    asyncio.run(_fetch_all(Client(rules, meter, connections, Path(output), pauses=pauses), lists, shards, digits))


async def _fetch_all(unopened: "Client", lists: list[Path], shards: int, digits: int) -> None:
    async with unopened as client, asyncio.TaskGroup() as group:
        begun = asyncio.Semaphore(shards)
        for number, path in enumerate(lists):
            await begun.acquire()
            task = group.create_task(_fetch_shard(client, path, LandingWriter(client.folder, number, digits)))
            task.add_done_callback(lambda _: begun.release())


async def _fetch_shard(client: "Client", path: Path, writer: LandingWriter) -> None:
    async def fetch(position: int, url: str) -> None:
        try:
            body = await client.open(url)
        except FetchError as error:
            writer.fail(position, url, error)
        else:
            writer.add(position, url, body.size, body.pieces())

    async with asyncio.TaskGroup() as group:
        for position, url in enumerate(pq.read_table(path, columns=["url"]).column("url").to_pylist()):
            group.create_task(fetch(position, url))
    writer.close()


class Body:
    """The bytes of one picture as they come, in memory or, beyond SPILL, in a file without a name."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._folder = folder

    def add(self, piece: bytes) -> None:
        """The next bytes."""
        self.size += len(piece)
        if self._file is None and self.size <= SPILL:
            self._pieces.append(piece)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed with the last reference
            self._file.writelines(self._pieces)
            self._pieces.clear()
        self._file.write(piece)

    def pieces(self) -> Iterator[bytes]:
        """All bytes, in order."""
        if self._file is None:
            yield from self._pieces
            return
        self._file.seek(0)
        while piece := self._file.read(COPY):
            yield piece
        self._file.close()


class Client:
    """Fetches links under `rules`, any number of them at a time."""

    def __init__(
        self,
        rules: Rules,
        meter: Meter | None,
        connections: int,
        folder: Path,
        resolve: Resolve = system_names,
        pauses: Pauses | None = None,
    ) -> None:
        """`folder` holds pictures too large for memory."""
        self._rules = rules
        self._meter = meter
        self.folder = folder
        self._connections = asyncio.Semaphore(connections)
        self._hosts: Hosts[asyncio.Semaphore] = Hosts(rules, asyncio.Semaphore, pauses)
        self._resolver = _Checked(rules, resolve)
        self._guard = Guard(rules, resolve)
        self._threads = ThreadPoolExecutor(PLAIN, thread_name_prefix="plain")

    async def __aenter__(self) -> "Client":
        connector = aiohttp.TCPConnector(
            limit=0,  # ours count redirects and pauses too
            resolver=self._resolver,
            use_dns_cache=True,
            ttl_dns_cache=REMEMBERED,
            keepalive_timeout=KEPT_ALIVE,
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._rules.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._rules.timeout, sock_read=self._rules.timeout),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def open(self, url: str) -> Body:
        """Fetch a link whole; transient failures are tried again after a growing, random pause.

        Raises:
            FetchError: with the reason of the last attempt.
        """
        host, reason, size = "", "fetch_failed", 0
        if self._meter:
            while self._meter.held:
                await asyncio.sleep(HELD)
            self._meter.begin()
        try:
            link = link_of(url)
            host = link.host
            body = await self._asked(link)
            reason, size = "", body.size
            return body
        except FetchError as error:
            reason = error.reason
            raise
        finally:
            if self._meter:
                self._meter.end(host, reason, size)

    async def _asked(self, link: Link) -> Body:
        """The body, after as many redirects and attempts as the rules give."""
        course = Course.begin(self._rules, link)
        while True:
            host = self._hosts.enter(course.link.host, time.monotonic())
            try:
                async with host.turns:
                    await self._wait(host)
                    async with self._connections:
                        began = time.monotonic()
                        found = await self._heard(host, course)
            finally:
                self._hosts.leave(host)
            seconds = time.monotonic() - began
            if isinstance(found, Link):
                course.redirect(found, seconds)
            elif isinstance(found, FetchError):
                await asyncio.sleep(course.retry(found, seconds))
            else:
                return found

    async def _heard(self, host: Host[asyncio.Semaphore], course: Course) -> "Body | Link | FetchError":
        """What one step of a link gives."""
        try:
            found = await self._step(course.link, course.left)
        except FetchError as error:
            return host.failed(course.link.port, error, time.monotonic())
        host.answered(course.link.port)
        return found

    async def _wait(self, host: Host[asyncio.Semaphore]) -> None:
        while (seconds := self._hosts.wait(host, time.monotonic())) > 0:
            await asyncio.sleep(seconds)

    async def _step(self, link: Link, seconds: float) -> "Body | Link":
        """Ask for `link` once: its body, or the link that it redirects to. Raises FetchError."""
        try:
            async with asyncio.timeout(seconds):
                return await self._answer(link)
        except aiohttp.ClientConnectorCertificateError as error:
            raise failure_of(error.certificate_error) from None  # type: ignore[arg-type]  # an SSLCertVerificationError
        except aiohttp.ClientConnectorError as error:
            raise failure_of(error.os_error) from None
        except OSError as error:  # TimeoutError, and aiohttp's own errors of a connection, among them
            raise failure_of(error) from None
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            raise FetchError("dropped", "the server closed the connection early") from None
        except (aiohttp.ClientError, ValueError):
            return await self._plainly(link, seconds)

    async def _plainly(self, link: Link, seconds: float) -> "Body | Link":
        """What img2dataset has: aiohttp is stricter, and drops an answer longer than announced."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._guard.step, link, seconds)
        if isinstance(found, Link):
            return found
        body = Body(self.folder)
        body.add(found[0])
        return body

    async def _answer(self, link: Link) -> "Body | Link":
        url, tls = yarl.URL(link.absolute, encoded=True), self._guard.tls if link.scheme == "https" else True
        async with self._session.get(url, allow_redirects=False, ssl=tls) as response:
            if response.status in REDIRECTS and (location := response.headers.get("Location")):
                return redirected(link, location)
            headers = response.headers
            robots = headers.getall("X-Robots-Tag", [])
            self._rules.judge(response.status, response.content_length, robots, headers.get("Retry-After"))
            body = Body(self.folder)
            async for piece in response.content.iter_any():
                body.add(piece)
                if body.size > self._rules.max_bytes:
                    raise self._rules.too_large()
            return body

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket for what aiohttp is about to connect to, names that are numeric addresses included."""
        family, kind, protocol, _, place = address
        self._rules.checked(str(place[0]), [(family, kind, protocol, "", place)])
        return socket.socket(family, kind, protocol)


class _Checked(AbstractResolver):
    """Resolves in threads, and gives only what the rules permit."""

    def __init__(self, rules: Rules, resolve: Resolve) -> None:
        self._rules = rules
        self._resolve = resolve
        self._threads = ThreadPoolExecutor(NAMES, thread_name_prefix="names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._rules.resolved, host, port, self._resolve)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
