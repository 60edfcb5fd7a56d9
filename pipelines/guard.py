"""What a downloader may connect to and how much it may read; standard library alone, so that it can run
anywhere.

A list of links is written by strangers, so a link may point into this machine or its network. `Guard.open`
fetches one link with every rule applied, and `install` makes it all that a process can do with its sockets:

- http and https only, no user name or password in the link;
- a name is resolved once, all its addresses must be public or in `allow`, and the connection goes to the
  address that was checked, so a second answer of the name server changes nothing;
- each redirect is judged like a new link;
- a picture has a limit of bytes, and its link one of seconds, after which its connections are cut;
- whatever else in the process calls `connect`, an audit hook refuses addresses that are not permitted.

Proxies of the environment are not used: behind one, nobody here would see the address.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import random
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
import urllib.response
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
TIMEOUT = 10.0  # seconds to wait for a connection or for more bytes, where the caller does not say
PIECE = 1 << 16  # bytes asked of a response at a time; the limits are checked between pieces
TRANSIENT = frozenset({"timeout", "dropped", "http_429", "http_500", "http_502", "http_503", "http_504"})
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class FetchError(Exception):
    """A link that gave no picture; its text is `reason: detail`, which is how img2dataset records it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Deadline:
    """The seconds of one attempt: when they are over, its connections are cut, whatever they are waiting for.

    A cut looks like an end of the answer, so leaving the block after it raises a FetchError, `timeout`, in
    place of a result or of another FetchError. Only the name server's answer cannot be cut.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = time.monotonic() + seconds
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        over = time.monotonic() >= self._ends
        self._timer.cancel()
        with self._lock:
            while self._connections:
                self._connections.pop().close()
        if over and (error is None or isinstance(error, FetchError)):
            raise FetchError("timeout", f"not finished within {self._seconds:g} s") from None

    def left(self) -> float:
        """Seconds that are left, above zero. Raises TimeoutError where none are."""
        if (left := self._ends - time.monotonic()) <= 0:
            raise TimeoutError
        return left

    def watch(self, connection: socket.socket) -> None:
        """Have `connection` cut in time, also when TLS has wrapped it. Raises TimeoutError where it is over."""
        with self._lock:
            self._connections.append(connection.dup())  # wrapping takes the descriptor of the first away
        self.left()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # the other side has closed it already
                    connection.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Guard:
    """The rules for one download; `open` has the signature that `urllib.request.urlopen` calls."""

    allow: tuple[str, ...] = ()  # networks in CIDR notation that are open besides the public internet
    max_bytes: int = 32 << 20
    max_seconds: float = 30.0  # for one attempt at a link: redirects, headers and body
    retries: int = 2  # further attempts after a transient failure
    sleep: Callable[[float], None] = field(default=time.sleep, compare=False)

    @cached_property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """`allow`, parsed. Raises ValueError for what is no network."""
        return tuple(ipaddress.ip_network(text) for text in self.allow)

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """One verifying context for all connections: making one takes longer than a small picture."""
        return ssl.create_default_context()

    def open(
        self, request: urllib.request.Request | str, data: None = None, timeout: object = None
    ) -> urllib.response.addinfourl:
        """Fetch a link whole; transient failures are tried again after a growing, random pause.

        Raises:
            FetchError: with the reason of the last attempt.
        """
        url = request if isinstance(request, str) else request.full_url
        headers = {} if isinstance(request, str) else dict(request.header_items())
        seconds = timeout if isinstance(timeout, int | float) else TIMEOUT  # urlopen's default is a bare object
        for attempt in range(self.retries + 1):
            try:
                return self._fetch(url, headers, seconds)
            except FetchError as error:
                if error.reason not in TRANSIENT or attempt == self.retries:
                    raise
            self.sleep(0.25 * 2**attempt * (1 + random.random()))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def permits(self, address: str) -> bool:
        """Whether a connection to a numeric address is allowed."""
        try:
            ip = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
        except ValueError:
            return False
        if any(ip in network for network in self.networks):
            return True
        local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local
        return ip.is_global and not (ip.is_multicast or ip.is_reserved or local)

    def connect(self, host: str, port: int, timeout: float, deadline: Deadline) -> socket.socket:
        """A connection to one of the addresses that `host` has now, all of which must be permitted.

        Raises FetchError, TimeoutError once the deadline is over, or the OSError of the last address.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise FetchError("dead_link", f"the name {host} does not resolve") from None
        for *_, address in found:
            if not self.permits(str(address[0])):
                raise FetchError("forbidden_address", f"{host} leads to {address[0]}, no public address")
        failure: OSError = OSError("no address")
        for family, kind, protocol, _, address in found:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(min(timeout, deadline.left()))
                connection.connect(address)
                connection.settimeout(timeout)
                deadline.watch(connection)
                return connection
            except OSError as error:
                failure = error
                connection.close()
        raise failure

    def watch(self, event: str, arguments: tuple[object, ...]) -> None:
        """Audit hook: refuses whatever connection `permits` refuses, unresolved names included."""
        if event in {"socket.connect", "socket.sendto", "socket.sendmsg"} and isinstance(arguments[1], tuple):
            host = str(arguments[1][0])
            if not self.permits(host):
                raise FetchError("forbidden_address", f"{host} is not a public address")

    def _fetch(self, url: str, headers: Mapping[str, str], timeout: float) -> urllib.response.addinfourl:
        with Deadline(self.max_seconds) as deadline:
            return self._followed(url, headers, timeout, deadline)

    def _followed(
        self, url: str, headers: Mapping[str, str], timeout: float, deadline: Deadline
    ) -> urllib.response.addinfourl:
        """The answer at the end of a link's redirects; whatever a cut connection looks like may be raised."""
        for _ in range(MAX_REDIRECTS + 1):
            connection, target = self._connection(url, timeout, deadline)
            try:
                connection.request("GET", target, headers={**headers, "Connection": "close"})
                response = connection.getresponse()
                if response.status in REDIRECTS and (location := response.headers.get("Location")):
                    url = urllib.parse.urljoin(url, location)
                    continue
                if response.status != 200:
                    raise FetchError(f"http_{response.status}", f"the server answered {response.status}")
                body = self._body(response)
                return urllib.response.addinfourl(io.BytesIO(body), response.headers, url, response.status)
            except TimeoutError:
                raise FetchError("timeout", f"no answer within {timeout:g} s") from None
            except ssl.SSLError as error:
                raise FetchError("tls", error.reason or type(error).__name__) from None
            except (ConnectionResetError, BrokenPipeError, http.client.IncompleteRead):
                raise FetchError("dropped", "the server closed the connection") from None
            except OSError as error:
                raise FetchError("dead_link", error.strerror or type(error).__name__) from None
            except (http.client.HTTPException, ValueError) as error:
                raise FetchError("bad_answer", type(error).__name__) from None
            finally:
                connection.close()
        raise FetchError("redirects", f"more than {MAX_REDIRECTS} redirects")

    def _connection(self, url: str, timeout: float, deadline: Deadline) -> tuple[_Connection, str]:
        """An unopened connection for `url`, and what to ask it for."""
        try:
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in {"http", "https"}:
                raise FetchError("forbidden_scheme", f"{parts.scheme or 'no scheme'} is neither http nor https")
            host = (parts.hostname or "").encode("idna").decode()
            if parts.username is not None or not host:
                raise FetchError("bad_url", "a link must name a host, and no user")
            path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            target = urllib.parse.quote(path, safe="/%:=&?~+!$,;'@()*[]")
            connection = (
                _TlsConnection(host, parts.port or 443, timeout=timeout, context=self.tls)
                if parts.scheme == "https"
                else _Connection(host, parts.port or 80, timeout=timeout)
            )
        except (ValueError, http.client.InvalidURL):
            raise FetchError("bad_url", "a part of the link is malformed") from None
        connection.guard, connection.deadline = self, deadline
        return connection, target

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        announced = response.length
        if announced is not None and announced > self.max_bytes:
            raise FetchError("too_large", f"more than {self.max_bytes} bytes")
        pieces, size = [], 0
        while piece := response.read1(PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > self.max_bytes:
                raise FetchError("too_large", f"more than {self.max_bytes} bytes")
        if announced is not None and size < announced:
            raise FetchError("dropped", f"{size} of {announced} bytes came")
        return b"".join(pieces)


def install(guard: Guard) -> None:
    """Make `guard` what `urllib.request.urlopen` uses in this process; watch all connections for good."""
    urllib.request.install_opener(guard)  # type: ignore[arg-type]  # urlopen calls nothing but its `open`
    sys.addaudithook(guard.watch)


class _Connection(http.client.HTTPConnection):
    """Connects to the address that the guard has checked."""

    guard: Guard
    deadline: Deadline

    def connect(self) -> None:
        self.sock = self.guard.connect(self.host, self.port, float(self.timeout or TIMEOUT), self.deadline)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _TlsConnection(http.client.HTTPSConnection, _Connection):
    """HTTPSConnection.connect calls the `connect` above, then wraps its socket and verifies the name."""


def _unwrapped(ip: Address) -> Address:
    """The IPv4 address that an IPv6 address of a transition scheme leads to, or the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip
