"""Fetches links one at a time in a thread, with every rule applied; standard library alone, so that it runs anywhere.

`Guard.open` has the signature that `urllib.request.urlopen` calls, and `install` makes it all that a process can do
with its sockets: whatever else in the process calls `connect`, an audit hook refuses addresses that are not permitted.
Proxies of the environment are not used: behind one, nobody here would see the address.

Connections are kept and used again: they lead to an address that was checked when they were made.
"""

import contextlib
import http.client
import io
import socket
import ssl
import sys
import threading
import time
import urllib.request
import urllib.response
from collections.abc import Callable
from functools import cached_property
from typing import Any

from pipelines.course import Course
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
    tls_context,
)
from pipelines.traffic import HELD, Meter

PIECE = 1 << 16  # bytes asked of a response at a time; the limits are checked between pieces
DRAINED = 1 << 14  # bytes of a refusal that are read so that its connection can be used again
IDLE = 64  # connections of a process that are kept while nobody uses them
IDLE_SECONDS = 10.0  # most servers close after five to sixty

Answer = tuple[bytes, http.client.HTTPMessage, str]


class Deadline:
    """The seconds that are left for one attempt; sockets wait for nothing longer than that."""

    def __init__(self, seconds: float, patience: float) -> None:
        """`patience`: seconds to wait for any one thing."""
        self._ends = time.monotonic() + seconds
        self._patience = patience

    def wait(self) -> float:
        """Seconds that the next thing may take, above zero. Raises TimeoutError where the time is over."""
        if (left := self._ends - time.monotonic()) <= 0:
            raise TimeoutError
        return min(left, self._patience)


class Guard:
    """Fetches links under `rules`, from any number of threads."""

    def __init__(
        self,
        rules: Rules,
        resolve: Resolve = system_names,
        sleep: Callable[[float], None] = time.sleep,
        meter: Meter | None = None,
        pauses: Pauses | None = None,
    ) -> None:
        self.rules = rules
        self._resolve = resolve
        self._sleep = sleep
        self._meter = meter
        self._hosts: Hosts[threading.Semaphore] = Hosts(rules, threading.Semaphore, pauses)
        self._pool = _Pool()

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """The one context of all connections."""
        context = tls_context()
        context.sslsocket_class = _TlsSocket
        return context

    def open(
        self, request: urllib.request.Request | str, data: None = None, timeout: object = None
    ) -> urllib.response.addinfourl:
        """Fetch a link whole; transient failures are tried again after a growing, random pause.

        `data` and `timeout` are what urlopen passes; the rules' own limits hold.

        Raises:
            FetchError: with the reason of the last attempt.
        """
        url = request if isinstance(request, str) else request.full_url
        host, reason, size = "", "fetch_failed", 0
        if self._meter:
            while self._meter.held:
                self._sleep(HELD)
            self._meter.begin()
        try:
            link = link_of(url)
            host = link.host
            body, headers, last = self._asked(link)
            reason, size = "", len(body)
            return urllib.response.addinfourl(io.BytesIO(body), headers, last, 200)
        except FetchError as error:
            reason = error.reason
            raise
        finally:
            if self._meter:
                self._meter.end(host, reason, size)

    def _asked(self, link: Link) -> Answer:
        """Body, headers and last link, after as many redirects and attempts as the rules give."""
        course = Course.begin(self.rules, link)
        while True:
            host = self._hosts.enter(course.link.host, time.monotonic())
            try:
                with host.turns:
                    self._wait(host)
                    began, found = time.monotonic(), self._heard(host, course)
            finally:
                self._hosts.leave(host)
            seconds = time.monotonic() - began
            if isinstance(found, Link):
                course.redirect(found, seconds)
            elif isinstance(found, FetchError):
                self._sleep(course.retry(found, seconds))
            else:
                return found

    def _heard(self, host: Host[threading.Semaphore], course: Course) -> "Answer | Link | FetchError":
        """What one step of a link gives."""
        try:
            found = self.step(course.link, course.left)
        except FetchError as error:
            return host.failed(course.link.port, error, time.monotonic())
        host.answered(course.link.port)
        return found

    def _wait(self, host: Host[threading.Semaphore]) -> None:
        while (seconds := self._hosts.wait(host, time.monotonic())) > 0:
            self._sleep(seconds)

    def step(self, link: Link, seconds: float) -> "Answer | Link":
        """Ask for `link` once and at once: its answer, or the link that it redirects to. Raises FetchError."""
        deadline = Deadline(seconds, self.rules.timeout)
        try:
            response, connection = self._answer(link, deadline)
            try:
                if response.status in REDIRECTS and (location := response.headers.get("Location")):
                    self._drain(response)
                    return redirected(link, location)
                return self._body(response), response.headers, link.url
            finally:
                self._give_back(connection, response)
        except http.client.IncompleteRead:
            raise FetchError("dropped", "the server closed the connection early") from None
        except OSError as error:
            raise failure_of(error) from None
        except (http.client.HTTPException, ValueError):
            raise FetchError("bad_answer", "the answer is not HTTP") from None

    def _answer(self, link: Link, deadline: Deadline) -> tuple[http.client.HTTPResponse, "_Connection"]:
        """The head of the answer; a kept connection that the server has closed meanwhile is replaced at once."""
        headers = {"User-Agent": self.rules.user_agent, "Accept": "*/*"}
        kept = self._pool.take(link.origin)
        while True:
            connection = kept or (_TlsConnection if link.scheme == "https" else _Connection)(self, link)
            connection.use(deadline)
            try:
                connection.request("GET", link.target, headers=headers)
                return connection.getresponse(), connection
            except (http.client.BadStatusLine, ConnectionError):
                connection.close()
                if kept is None:
                    raise
                kept = None
            except BaseException:
                connection.close()
                raise

    def connect(self, link: Link, deadline: Deadline) -> socket.socket:
        """A connection to one of the addresses that the host has now, all of which must be permitted.

        Raises FetchError, TimeoutError once the deadline is over, or the OSError of the last address.
        """
        failure: OSError = OSError("no address")
        for family, kind, protocol, _, address in self.rules.resolved(link.host, link.port, self._resolve):
            connection = _Socket(family, kind, protocol)
            try:
                connection.deadline = deadline
                connection.settimeout(deadline.wait())
                connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(deadline.wait())
                return connection
            except OSError as error:
                failure = error
                connection.close()
        raise failure

    def _give_back(self, connection: "_Connection", response: http.client.HTTPResponse) -> None:
        """Keep the connection where the answer was read to its end; otherwise close it."""
        read = response.isclosed() or response.length == 0
        if read and not response.will_close and connection.sock is not None:
            response.close()
            self._pool.keep(connection)
        else:
            connection.close()
            response.close()

    def _drain(self, response: http.client.HTTPResponse) -> None:
        if response.length is not None and response.length <= DRAINED:
            with contextlib.suppress(OSError, http.client.HTTPException):
                response.read()

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        headers, announced = response.headers, response.length
        robots = headers.get_all("X-Robots-Tag", [])
        try:
            self.rules.judge(response.status, announced, robots, headers.get("Retry-After"))
        except FetchError:
            self._drain(response)
            raise
        pieces, size = [], 0
        while piece := response.read1(PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > self.rules.max_bytes:
                raise self.rules.too_large()
        if announced is not None and size < announced:
            raise FetchError("dropped", "the server closed the connection early")
        return b"".join(pieces)


def install(guard: Guard) -> None:
    """Make `guard` what `urllib.request.urlopen` uses in this process; watch all connections for good."""
    urllib.request.install_opener(guard)  # type: ignore[arg-type]  # urlopen calls nothing but its `open`
    sys.addaudithook(guard.rules.watch)


class _Timed:
    """A socket that waits for more bytes no longer than its deadline lets it."""

    deadline: Deadline | None = None

    def recv_into(self, *arguments: Any) -> int:
        if self.deadline is not None:
            self.settimeout(self.deadline.wait())  # type: ignore[attr-defined]
        return super().recv_into(*arguments)  # type: ignore[misc,no-any-return]


class _Socket(_Timed, socket.socket):
    """A plain connection."""


class _TlsSocket(_Timed, ssl.SSLSocket):
    """An encrypted connection."""


class _Connection(http.client.HTTPConnection):
    """Connects to an address that the guard has checked."""

    def __init__(self, guard: Guard, link: Link) -> None:
        super().__init__(link.host, link.port)
        self.link = link
        self.idle_since = 0.0
        self._guard = guard
        self._deadline: Deadline | None = None

    def use(self, deadline: Deadline) -> None:
        """Hold the next request to `deadline`. Raises TimeoutError where it is over."""
        self._deadline = deadline
        if self.sock is not None:
            self.sock.deadline = deadline  # type: ignore[union-attr]  # a _Socket or a _TlsSocket
            self.sock.settimeout(deadline.wait())

    def connect(self) -> None:
        assert self._deadline is not None
        self.sock = self._guard.connect(self.link, self._deadline)

    def is_alive(self) -> bool:
        """Whether a kept connection is silent, as it has to be: neither closed nor sending what nobody asked for."""
        try:
            self.sock.settimeout(0)
            socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


class _TlsConnection(_Connection):
    """Encrypts, and verifies the name."""

    default_port = 443

    def connect(self) -> None:
        super().connect()
        assert self._deadline is not None
        self.sock = self._guard.tls.wrap_socket(self.sock, server_hostname=self.link.host)
        self.use(self._deadline)


class _Pool:
    """Connections that nobody uses at the moment, the newest taken first."""

    def __init__(self) -> None:
        self._kept: list[_Connection] = []
        self._lock = threading.Lock()

    def take(self, origin: tuple[str, str, int]) -> _Connection | None:
        """A connection to `origin` that still stands, or None."""
        while True:
            with self._lock:
                places = [n for n, kept in enumerate(self._kept) if kept.link.origin == origin]
                connection = self._kept.pop(places[-1]) if places else None
            if connection is None:
                return None
            if time.monotonic() - connection.idle_since < IDLE_SECONDS and connection.is_alive():
                return connection
            connection.close()

    def keep(self, connection: _Connection) -> None:
        """Keep a connection whose answer was read to its end."""
        connection.idle_since = time.monotonic()
        with self._lock:
            self._kept.append(connection)
            oldest = self._kept.pop(0) if len(self._kept) > IDLE else None
        if oldest is not None:
            oldest.close()
