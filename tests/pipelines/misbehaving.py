"""A web server that misbehaves on purpose, traps on addresses that nobody may reach, and a list of links to both."""

import asyncio
import io
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.columns import LIST_SCHEMA

BARRED = ("127.0.0.2", "::1")  # loopback addresses that the tests' allow-list leaves out
HUGE = 40_000_000


@dataclass(frozen=True)
class Kind:
    """One way to behave: how many links in a thousand, where they lead, and what has to become of them."""

    share: int
    url: str
    """With {n} for the link's number and {port}."""
    reason: str | None = None
    """Why it gives no sample; None: it does."""


KINDS = {
    "missing": Kind(40, "http://a{n}.test:{port}/missing/{n}", "http_404"),
    "secret": Kind(20, "http://127.0.0.1:{port}/secret/{n}", "http_403"),
    "busy": Kind(10, "http://busy{n}.test:{port}/busy/{n}"),  # 429 with Retry-After, then a picture
    "broken": Kind(20, "http://127.0.0.1:{port}/broken/{n}"),  # 500, then a picture
    "down": Kind(5, "http://down{n}.test:{port}/down/{n}", "http_503"),
    "drip": Kind(4, "http://drip{n}.test:{port}/drip/{n}", "timeout"),
    "endless": Kind(5, "http://127.0.0.1:{port}/endless/{n}", "too_large"),
    "huge": Kind(2, "http://127.0.0.1:{port}/huge/{n}", "too_large"),
    "short": Kind(10, "http://127.0.0.1:{port}/short/{n}", "dropped"),
    "long": Kind(10, "http://127.0.0.1:{port}/long/{n}", "truncated"),
    "reset": Kind(10, "http://127.0.0.1:{port}/reset/{n}", "dropped"),
    "chain": Kind(20, "http://b.test:{port}/chain/3/{n}"),
    "loop": Kind(5, "http://127.0.0.1:{port}/loop/{n}", "redirects"),
    "inner": Kind(10, "http://127.0.0.1:{port}/to/http://127.0.0.2:{port}/{n}", "forbidden_address"),
    "named": Kind(10, "http://127.0.0.1:{port}/to/http://meta.test/{n}", "forbidden_address"),
    "file": Kind(10, "http://127.0.0.1:{port}/to/file:///etc/hostname?{n}", "forbidden_scheme"),
    "html": Kind(20, "http://127.0.0.1:{port}/html/{n}", "not_an_image"),
    "cut": Kind(20, "http://127.0.0.1:{port}/cut/{n}", "truncated"),
    "turned": Kind(20, "http://127.0.0.1:{port}/turned/{n}"),
    "deep": Kind(20, "http://127.0.0.1:{port}/deep/{n}"),
    "cmyk": Kind(20, "http://127.0.0.1:{port}/cmyk/{n}"),
    "noai": Kind(20, "http://127.0.0.1:{port}/noai/{n}", "opted_out"),
    "meta": Kind(10, "http://meta.test/{n}", "forbidden_address"),
    "flip": Kind(10, "http://flip{n}.test:{port}/good/{n}"),
    "flop": Kind(10, "http://flop{n}.test:{port}/good/{n}", "forbidden_address"),
    "both": Kind(5, "http://both.test:{port}/good/{n}", "forbidden_address"),
    "mapped": Kind(5, "http://mapped.test:{port}/good/{n}", "forbidden_address"),
    "number": Kind(5, "http://2130706434:{port}/good/{n}", "forbidden_address"),  # 127.0.0.2
    "octal": Kind(5, "http://0177.0.0.2:{port}/good/{n}", "forbidden_address"),
    "wide": Kind(5, "http://127.0.0.\uff12:{port}/good/{n}", "forbidden_address"),  # a full-width 2, which IDNA folds
    "zero": Kind(5, "http://0.0.0.0:{port}/good/{n}", "forbidden_address"),
    "six": Kind(5, "http://[::1]:{port}/good/{n}", "forbidden_address"),
    "user": Kind(5, "http://127.0.0.1@127.0.0.2:{port}/{n}", "bad_url"),
    "closed": Kind(5, "http://127.0.0.1:9/{n}", "dead_link"),
    "unknown": Kind(5, "http://unknown{n}.invalid/", "dead_link"),
}
GOOD = Kind(0, "http://host{h}.test:{port}/good/{n}")


@dataclass
class Site:
    """The server, while it runs."""

    port: int
    requests: Counter[str] = field(default_factory=Counter)
    """How often each path was asked for."""
    hosts: Counter[str] = field(default_factory=Counter)
    """What the Host headers said, without port."""
    trapped: list[str] = field(default_factory=list)
    """Connections to forbidden addresses."""
    open_now: Counter[str] = field(default_factory=Counter)
    most_open: Counter[str] = field(default_factory=Counter)
    """Requests to one host at a time, at most."""
    well: bool = False
    """Whether servers that were down are up again."""
    delay: float = 0.0
    """Seconds before each answer."""
    stop: Callable[[], None] = lambda: None
    """Closes the server and every connection at once."""


def write_list(
    path: Path, port: int, rows: int, kinds: Mapping[str, Kind] = KINDS, seed: int = 0
) -> dict[str, str | None]:
    """A list of `rows` links of all `kinds`, and good ones, in random order; returns what has to become of each."""
    numbers = iter(range(rows))
    links = []
    for name, kind in kinds.items():
        for _ in range(max(1, kind.share * rows // 1000)):
            n = next(numbers)
            links.append((f"{name}-{n}", kind.url.format(n=n, port=port), kind.reason))
    links += [(f"good-{n}", GOOD.url.format(n=n, h=n % 20, port=port), None) for n in numbers]
    random.Random(seed).shuffle(links)
    table = [{"row_id": row_id, "url": url, "task": "text2image", "caption": row_id} for row_id, url, _ in links]
    pq.write_table(pa.Table.from_pylist(table, LIST_SCHEMA), path)
    return {row_id: reason for row_id, _, reason in links}


@contextmanager
def misbehave(port: int = 0) -> Iterator[Site]:
    """Serve while the context lasts."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    site = Site(port)
    servers = asyncio.run_coroutine_threadsafe(_start(site), loop).result()

    def stop() -> None:
        for server in servers:
            server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()

    site.stop = lambda: loop.call_soon_threadsafe(stop) and None
    try:
        yield site
    finally:
        site.stop()
        loop.call_soon_threadsafe(loop.call_later, 0.1, loop.stop)
        thread.join()


async def _start(site: Site) -> list[asyncio.Server]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _answer(site, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the server has been stopped
        finally:
            writer.close()

    async def trap(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        site.trapped.append(str(writer.get_extra_info("sockname")))
        writer.close()

    servers = [await asyncio.start_server(serve, "127.0.0.1", site.port, backlog=512)]
    site.port = servers[0].sockets[0].getsockname()[1]
    for address in BARRED:
        servers.append(await asyncio.start_server(trap, address, site.port))
    return servers


async def _answer(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    path = head.split(" ", 2)[1]
    host = next((line[6:] for line in head.split("\r\n") if line.lower().startswith("host: ")), "").rpartition(":")[0]
    site.requests[path] += 1
    site.hosts[host] += 1
    site.open_now[host] += 1
    site.most_open[host] = max(site.most_open[host], site.open_now[host])
    try:
        return await _behave(site, path, writer)
    finally:
        site.open_now[host] -= 1


async def _behave(site: Site, path: str, writer: asyncio.StreamWriter) -> bool:
    if site.delay:
        await asyncio.sleep(site.delay)
    kind, _, rest = path.lstrip("/").partition("/")
    number = rest.rpartition("/")[2]
    again = site.requests[path] > 1

    def send(status: str, headers: str, body: bytes) -> None:
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)

    if kind == "to":
        send("302 Found", f"Location: {rest}\r\n", b"")
    elif kind == "chain":
        left = int(rest[0]) - 1
        send("302 Found", f"Location: {f'/chain/{left}/{number}' if left else f'/good/{number}'}\r\n", b"moved")
    elif kind == "loop":
        send("302 Found", f"Location: {path}\r\n", b"")
    elif kind in {"missing", "secret"}:
        send("404 Not Found" if kind == "missing" else "403 Forbidden", "", b"no")
    elif kind == "busy" and not again:
        send("429 Too Many Requests", "Retry-After: 1\r\n", b"")
    elif kind == "broken" and not again:
        send("500 Internal Server Error", "", b"oh")
    elif kind == "down" and not site.well:
        send("503 Service Unavailable", "", b"")
    elif kind == "drip" and not site.well:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        for _ in range(600):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)
        return False
    elif kind == "endless":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            await writer.drain()
    elif kind == "huge":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % HUGE)
        for _ in range(HUGE >> 20):
            writer.write(bytes(1 << 20))
            await writer.drain()
    elif kind == "short" and not site.well:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + picture(number))
        return False
    elif kind == "long":
        body = picture(number)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) // 2) + body)
    elif kind == "reset" and not site.well:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    elif kind == "html":
        send("200 OK", "Content-Type: image/jpeg\r\n", b"<!DOCTYPE html><title>Gone</title>")
    elif kind == "noai":
        send("200 OK", "X-Robots-Tag: otherbot: noindex\r\nX-Robots-Tag: nofollow, noai\r\n", picture(number))
    else:
        send("200 OK", "Content-Type: image/jpeg\r\n", body_of(kind, number))
    await writer.drain()
    return True


def body_of(kind: str, number: str) -> bytes:
    """What a server sends that behaves, for each kind of picture."""
    return MADE[kind]() if kind in MADE else picture(number)


def picture(number: str) -> bytes:
    """A JPEG of 48 x 32, other bytes for each number: the number is its comment."""
    comment = number.encode()
    return PLAIN[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + PLAIN[2:]


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


_noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
PLAIN = _encoded(Image.fromarray(_noise), "JPEG", quality=90)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(Image.fromarray(_noise), "JPEG", exif=exif)


def _constant(content: bytes) -> Callable[[], bytes]:
    return lambda: content


MADE = {
    "turned": _constant(_turned()),
    "deep": _constant(_encoded(Image.fromarray(_noise[..., 0].astype(np.uint16) * 257), "PNG")),
    "cmyk": _constant(_encoded(Image.fromarray(_noise).convert("CMYK"), "JPEG")),
    "cut": _constant(PLAIN[: len(PLAIN) // 2]),
}
