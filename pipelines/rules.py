"""What a link, an address and an answer must be for a picture to be taken: the rules that every engine applies.

Standard library alone, because img2dataset's environment loads it too. A list of links is written by strangers, so
a link may point into this machine or its network:

- http and https only, no user name or password, no port that another protocol owns;
- all addresses of a name must be public or in `allow`, and a connection goes to an address that was checked, so that
  a second answer of the name server changes nothing; each redirect is judged like a new link;
- a picture has a limit of bytes, and its link one of seconds;
- a server that opts out by X-Robots-Tag is obeyed.
"""

import email.utils
import errno
import http.client
import ipaddress
import random
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

REDIRECTS = (301, 302, 303, 307, 308)
MAX_URL = 8192  # characters; servers take no more
OptOut = Literal["noai", "noimageai", "noindex", "noimageindex"]
OPT_OUT: tuple[OptOut, ...] = ("noai", "noimageai", "noindex", "noimageindex")  # what img2dataset obeys by default
MEANT = {"none": "noindex"}  # directives that are others by another name: `none` is noindex and nofollow
AT_FAULT = (408, 425, 429, 500, 502, 503, 504)  # statuses of a server that is busy or broken at the moment
TRANSIENT = frozenset({"timeout", "dropped", "gone", "name_server", "unreachable", "local", "paused"}) | frozenset(
    f"http_{status}" for status in AT_FAULT
)
"""Reasons that may be gone at the next attempt; a refused connection or unknown name (`dead_link`) hardly ever is."""
PASSING = TRANSIENT | {"tls", "fetch_failed"} | {f"http_{status}" for status in range(500, 600)}
"""Reasons that may be gone another day: besides those, a certificate (or a clock that was wrong, or a network that
intercepts), a failure of an engine itself, and whatever a server lays on itself, Cloudflare's 520 to 530 among it."""
OWN_SIDE = frozenset({"gone", "name_server", "unreachable", "local"})  # more likely this side's fault than the link's
REFUSED = "the connection is refused"
NO_PICTURES = frozenset({1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6697, 10080}) | frozenset(
    range(6665, 6670)
)  # ports above 1023 that the Fetch standard bars, because other protocols listen there
HOST = re.compile(r"[a-z0-9._:-]{1,255}")
NUMERIC = re.compile(r"\d+|0x[0-9a-f]*")  # the last label of no name
SCOPED = re.compile(r"\s*([^\s:,]+)\s*:(.*)", re.DOTALL)  # X-Robots-Tag: `agent: directive`
TYPED = re.compile(r"([a-z0-9_]+): (.*)", re.DOTALL)  # the text of a FetchError
VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # no agents, in spite of `:`

UNICAST = ipaddress.ip_network("2000::/3")  # RFC 4291: all of IPv6 that the internet routes
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
BARRED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's host, in public space, which hands a machine its certificates
        "192.0.0.0/24",  # RFC 6890: protocol assignments; Oracle's metadata among them
        "192.88.99.0/24",  # RFC 7526: relays of 6to4, once
        "2001::/23",  # RFC 2928: protocol assignments; Teredo, whose inner address is another's to choose, among them
        "3fff::/20",  # RFC 9637: documentation
    )
)
ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: the interface identifier ends in an IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Found = Sequence[tuple[Any, ...]]  # what socket.getaddrinfo returns
Resolve = Callable[[str, int], Found]


class FetchError(Exception):
    """A link that gave no picture; its text is `reason: detail`, which is how img2dataset records it."""

    def __init__(self, reason: str, detail: str, status: int | None = None, retry_after: float | None = None) -> None:
        """`status`: the HTTP status of the answer, where there was one; it leads the detail."""
        self.reason = reason
        self.status = status
        self.detail = f"HTTP {status}: {detail}" if status else detail
        self.retry_after = retry_after
        super().__init__(f"{reason}: {self.detail}")


@dataclass(frozen=True, slots=True)
class Link:
    """A link that may be asked, in its parts."""

    url: str
    """As it was written, for what redirects are relative to."""
    scheme: str
    host: str
    """Lower-case ASCII, an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query, percent-encoded."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """What a connection is made for."""
        return (self.scheme, self.host, self.port)

    @property
    def absolute(self) -> str:
        """The link as it is asked for."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.target}"


@dataclass(frozen=True)
class Rules:
    """The rules of one download."""

    allow: tuple[str, ...] = ()
    """Networks in CIDR notation that are open besides the public internet."""
    max_bytes: int = 32 << 20
    """Bytes of one picture."""
    max_seconds: float = 60.0
    """Seconds of being connected for one link: attempts, redirects, headers and body together."""
    timeout: float = 10.0
    """Seconds to wait for a connection or for more bytes."""
    retries: int = 2
    """Further attempts after a transient failure."""
    opt_out: tuple[OptOut, ...] = OPT_OUT
    """Directives of X-Robots-Tag that are obeyed."""
    agent: str = "harmon"
    """The name under which X-Robots-Tag may address us."""
    user_agent: str = "Mozilla/5.0 (compatible; harmon)"
    """What servers are told."""
    per_host: int = 8
    """Connections to one host at a time."""
    per_second: float = 50.0
    """Requests to one host in a second."""
    max_pause: float = 60.0
    """Seconds that a host's Retry-After is waited for; its links fail as `paused` where it asks for more."""

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """`allow`, parsed. Raises ValueError for what is no network."""
        return tuple(ipaddress.ip_network(text) for text in self.allow)

    # Addresses

    def permits(self, address: str) -> bool:
        """Whether a connection to a numeric address is allowed."""
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if self._opens(ip):
            return True
        inner = _inner(ip)
        if any(one in network for network in BARRED for one in (ip, inner)):
            return False
        routed = isinstance(inner, ipaddress.IPv4Address) or inner in UNICAST
        return routed and inner.is_global and not (inner.is_multicast or inner.is_reserved)

    def checked(self, host: str, found: Found) -> Found:
        """The addresses of `host`, if every one of them may be connected to. Raises FetchError."""
        for family, *_, address in found:
            ip, port = str(address[0]), int(address[1])
            if not self.permits(ip):
                raise FetchError("forbidden_address", f"{host} leads to {ip}, no public address")
            if self._opens(ipaddress.ip_address(ip.partition("%")[0])):
                continue
            if self._is_own(family, ip):
                raise FetchError("forbidden_address", f"{host} leads to {ip}, this machine itself")
            if port not in {80, 81, 443} and (port < 1024 or port in NO_PICTURES):
                raise FetchError("forbidden_port", f"port {port} belongs to another protocol")
        if not found:
            raise FetchError("dead_link", f"the name {host} has no address")
        return found

    def resolved(self, host: str, port: int, resolve: Resolve) -> Found:
        """Ask for the addresses of `host` once, and check them. Raises FetchError."""
        try:
            found = resolve(host, port)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM, socket.EAI_MEMORY):
                raise FetchError("name_server", f"the name server does not answer for {host}") from None
            raise FetchError("dead_link", f"the name {host} does not resolve") from None
        except UnicodeError:
            raise FetchError("dead_link", f"the name {host} does not resolve") from None
        return self.checked(host, found)

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Audit hook: refuses whatever connection `permits` refuses, unresolved names included."""
        if event in {"socket.connect", "socket.sendto", "socket.sendmsg"} and isinstance(arguments[1], tuple):
            host = str(arguments[1][0])
            if not self.permits(host):
                raise FetchError("forbidden_address", f"{host} is not a public address")

    def _opens(self, ip: Address) -> bool:
        """Whether `allow` names the address, or the one inside it."""
        return any(one in network for network in self.networks for one in (ip, _inner(ip)))

    @staticmethod
    def _is_own(family: int, address: str) -> bool:
        """Whether a public address is one of this machine's: what listens there may trust whoever is inside.

        A UDP socket that is connected sends nothing; to reach an own address, the kernel would start from it.
        """
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, 9))
            except OSError:
                return False
            return str(probe.getsockname()[0]) == address

    # Answers

    def judge(self, status: int, announced: int | None, robots: Iterable[str], retry_after: str | None) -> None:
        """Refuse an answer by what its head says. Raises FetchError."""
        if status != 200:
            phrase = http.client.responses.get(status, "no known status")
            raise FetchError(f"http_{status}", phrase, status, seconds_of(retry_after))
        if self._opts_out(robots):
            raise FetchError("opted_out", "the server asks that the picture not be used (X-Robots-Tag)", status)
        if announced is not None and announced > self.max_bytes:
            raise self.too_large()

    def too_large(self) -> FetchError:
        """The failure of a picture over the limit."""
        return FetchError("too_large", f"more than {self.max_bytes} bytes", 200)

    def pause_after(self, error: FetchError, attempt: int) -> float | None:
        """Seconds to wait before attempt number `attempt` + 1, counted from 0; None: give up.

        Exponential backoff with full jitter: uniform from 0 to 0.5, 1, 2, ... seconds, on top of Retry-After.
        """
        if error.reason not in TRANSIENT or error.reason == "paused" or attempt >= self.retries:
            return None
        if (asked := error.retry_after or 0.0) > self.max_pause:
            return None
        return asked + random.uniform(0, min(self.max_pause, 0.5 * 2**attempt))

    def _opts_out(self, robots: Iterable[str]) -> bool:
        """Whether a directive binds us: one without an agent, or after ours; `agent:` holds to the header's end."""
        for header in robots:
            agent: str | None = None
            for part in header.lower().split(","):
                if (scoped := SCOPED.fullmatch(part)) and scoped[1] not in VALUED:
                    agent, part = scoped[1], scoped[2]
                told = MEANT.get(part.strip(), part.strip())
                if agent in (None, "*", self.agent) and told in self.opt_out:
                    return True
        return False


def link_of(url: str) -> Link:
    """The parts of a link. Raises FetchError for one that may not be asked, whatever it leads to."""
    if len(url) > MAX_URL:
        raise FetchError("bad_url", f"more than {MAX_URL} characters")
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"}:
            if not parts.scheme:
                raise FetchError("bad_url", "a link must begin with http:// or https://")
            raise FetchError("forbidden_scheme", f"{parts.scheme} is neither http nor https")
        host = (parts.hostname or "").encode("idna").decode().lower().rstrip(".")
        if parts.username is not None or not HOST.fullmatch(host):
            raise FetchError("bad_url", "a link must name a host, and no user")
        if ":" not in host and NUMERIC.fullmatch(
            host.rpartition(".")[2]
        ):  # 2130706433 or 0x7f.1: an IPv4 address in another spelling
            host = socket.inet_ntoa(socket.inet_aton(host))
        default = 443 if parts.scheme == "https" else 80
        port = default if parts.port is None else parts.port
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        target = urllib.parse.quote(path, safe="/%:=&?~+!$,;'@()*[]")
    except (ValueError, OSError):  # of a bracket, a port, a name that IDNA does not take, a lone surrogate
        raise FetchError("bad_url", "a part of the link is malformed") from None
    if port == 0:
        raise FetchError("bad_url", "a part of the link is malformed")
    return Link(url, parts.scheme, host, port, target if target.startswith("/") else f"/{target}")


def redirected(link: Link, location: str) -> Link:
    """The link that an answer's Location header leads to. Raises FetchError."""
    try:
        text = location.encode("latin-1").decode("utf-8", "replace")  # a header's bytes come as latin-1
    except UnicodeEncodeError:
        text = location
    try:
        return link_of(urllib.parse.urljoin(link.url, text))
    except ValueError:
        raise FetchError("bad_url", "it redirects to a malformed link") from None


def failure_of(error: OSError) -> FetchError:
    """What an error of a connection says about the link; an error of a disk says nothing, and is raised again."""
    number = error.errno
    if number in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}:
        raise error
    if isinstance(error, TimeoutError) or number == errno.ETIMEDOUT:
        return FetchError("timeout", "not finished in time")
    if isinstance(error, ssl.SSLCertVerificationError):
        return FetchError("tls", "the certificate is not valid for the host")
    if isinstance(error, ssl.SSLEOFError | ConnectionResetError) or number in {errno.ECONNRESET, errno.EPIPE}:
        return FetchError("dropped", "the server closed the connection early")
    if isinstance(error, ssl.SSLError):
        return FetchError("tls", "no encrypted connection can be made")
    if number in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}:
        return FetchError("unreachable", "no route leads to the host")
    if number in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}:
        return FetchError("local", f"this machine cannot open a connection ({error.strerror})")
    if number == errno.ECONNREFUSED:
        return FetchError("dead_link", REFUSED)
    return FetchError("dead_link", error.strerror or type(error).__name__)


def tls_context() -> ssl.SSLContext:
    """A verifying context; one serves all connections, since making it takes longer than a small picture."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def seconds_of(retry_after: str | None) -> float | None:
    """A Retry-After header, as seconds from now; None where it is absent or says nothing."""
    if retry_after is None:
        return None
    if re.fullmatch(r"\d{1,9}", text := retry_after.strip()):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def parsed(message: str) -> FetchError:
    """The FetchError whose text an engine has recorded; `fetch_failed` for text that is no such thing."""
    if match := TYPED.fullmatch(message):
        return FetchError(match[1], match[2])
    return FetchError("fetch_failed", message[:200])


def system_names(host: str, port: int) -> Found:
    """The system's answer for a name."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _inner(ip: Address) -> Address:
    """The IPv4 address that an IPv6 address of a transition scheme leads to, or the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in NAT64 or (int(ip) >> 32) & 0xFFFFFFFF in ISATAP:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
