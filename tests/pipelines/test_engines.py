"""The threads behind img2dataset and the native engine keep the same manners, against real servers."""

import asyncio
import json
import socket
import ssl
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from pipelines import native
from pipelines.guard import Guard
from pipelines.landed import Landed, LandingWriter
from pipelines.native import Client
from pipelines.politeness import KEPT, Hosts, Pauses
from pipelines.rules import FetchError, Found, Resolve, Rules, system_names
from tests.pipelines.misbehaving import Site, misbehave, picture

RULES = Rules(allow=("127.0.0.1/32",), timeout=5, retries=0, per_host=64, per_second=1e6)

Outcome = bytes | FetchError
Fetch = Callable[..., list[Outcome]]


def in_threads(rules: Rules, urls: Sequence[str], resolve: Resolve = system_names) -> list[Outcome]:
    """As img2dataset fetches: one thread a link."""
    guard = Guard(rules, resolve)

    def one(url: str) -> Outcome:
        try:
            return guard.open(url).read()
        except FetchError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, urls))


def natively(rules: Rules, urls: Sequence[str], resolve: Resolve = system_names) -> list[Outcome]:
    async def everything() -> list[Outcome]:
        async with Client(rules, None, 16, Path("/tmp"), resolve) as client:

            async def one(url: str) -> Outcome:
                try:
                    return b"".join((await client.open(url)).pieces())
                except FetchError as error:
                    return error

            return list(await asyncio.gather(*map(one, urls)))

    return asyncio.run(everything())


@pytest.fixture(params=[in_threads, natively])
def fetch(request: pytest.FixtureRequest) -> Fetch:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def site() -> Iterator[Site]:
    with misbehave() as site:
        yield site


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.reason if isinstance(outcome, FetchError) else "" for outcome in outcomes]


def test_one_host_never_has_more_connections_than_it_may(fetch: Fetch, site: Site) -> None:
    site.delay = 0.02
    urls = [f"http://127.0.0.1:{site.port}/good/{n}" for n in range(40)]
    assert fetch(replace(RULES, per_host=3), urls) == [picture(str(n)) for n in range(40)]
    assert site.most_open["127.0.0.1"] == 3


def test_one_host_is_asked_no_oftener_than_it_may_be_and_others_do_not_wait(fetch: Fetch, site: Site) -> None:
    rules = replace(RULES, per_second=20.0)
    slow = [f"http://127.0.0.1:{site.port}/good/{n}" for n in range(10)]

    def resolve(host: str, port: int) -> Found:
        return system_names("127.0.0.1", port)

    began = time.monotonic()
    assert reasons(fetch(rules, slow)) == [""] * 10
    assert time.monotonic() - began >= 9 / 20
    began = time.monotonic()
    assert reasons(fetch(rules, [f"http://h{n}.example:{site.port}/good/{n}" for n in range(10)], resolve)) == [""] * 10
    assert time.monotonic() - began < 9 / 20 + 1.0


def test_a_host_that_many_others_redirect_to_keeps_its_limits(fetch: Fetch, site: Site) -> None:
    def resolve(host: str, port: int) -> Found:
        return system_names("127.0.0.1", port)

    site.delay, to = 0.02, f"to/http://c.example:{site.port}/good"
    urls = [f"http://h{n}.example:{site.port}/{to}/{n}" for n in range(20)]
    assert fetch(replace(RULES, per_host=2), urls, resolve) == [picture(str(n)) for n in range(20)]
    assert site.most_open["c.example"] == 2


def test_retry_after_closes_the_host_for_all_its_links(fetch: Fetch, site: Site) -> None:
    rules = replace(RULES, retries=1, per_host=1)
    urls = [f"http://127.0.0.1:{site.port}/{name}" for name in ("busy/1", "good/2")]
    began = time.monotonic()
    assert reasons(fetch(rules, urls)) == ["", ""]
    assert time.monotonic() - began >= 1.0
    assert site.requests["/busy/1"] == 2


def test_a_pause_that_one_process_is_asked_for_holds_in_the_others(site: Site, tmp_path: Path) -> None:
    """Two guards are two worker processes of img2dataset, as far as they can tell."""
    slept: list[float] = []

    def guard() -> Guard:
        return Guard(replace(RULES, retries=0), sleep=slept.append, pauses=Pauses(tmp_path / "pauses"))

    first, second = guard(), guard()
    with pytest.raises(FetchError, match="http_429"):
        first.open(f"http://127.0.0.1:{site.port}/busy/1")
    began = time.monotonic()
    second._sleep = lambda seconds: (slept.append(seconds), time.sleep(seconds))[0]
    assert second.open(f"http://127.0.0.1:{site.port}/good/2").read() == picture("2")
    assert 0.5 < slept[0] <= 1.0 and time.monotonic() - began > 0.5  # Retry-After: 1
    late = guard()
    late.open(f"http://127.0.0.1:{site.port}/good/3")
    assert Pauses(tmp_path / "pauses").news() == [("127.0.0.1", pytest.approx(began + 1, abs=1))]


def test_a_line_about_a_pause_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    pauses = Pauses(tmp_path / "pauses")
    with (tmp_path / "pauses").open("ab", buffering=0) as other:
        other.write(b"a.example\t5.0\nb.exam")
        assert pauses.news() == [("a.example", 5.0)]
        other.write(b"ple\t6.5\n")
        assert pauses.news() == [("b.example", 6.5)] and pauses.news() == []


def test_a_host_that_wants_too_long_a_pause_is_not_asked_again(fetch: Fetch, site: Site) -> None:
    rules = replace(RULES, retries=3, max_pause=0.5, per_host=1)
    urls = [f"http://127.0.0.1:{site.port}/busy/{n}" for n in range(4)]
    outcomes = reasons(fetch(rules, urls))
    assert sorted(outcomes) == ["http_429", "paused", "paused", "paused"]
    assert sum(site.requests.values()) == 1


def test_connections_are_used_again_and_one_that_was_closed_is_replaced(fetch: Fetch) -> None:
    connections: list[object] = []

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            connections.append(self.client_address)
            super().setup()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
            self.close_connection = self.path == "/last"  # without a word of it

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    root = f"http://127.0.0.1:{server.server_address[1]}"
    rules = replace(RULES, per_host=1)
    assert fetch(rules, [f"{root}/{n}" for n in range(8)]) == [b"ok"] * 8
    assert len(connections) == 1
    connections.clear()
    assert fetch(rules, [f"{root}/{path}" for path in ("1", "last", "2", "last", "3")]) == [b"ok"] * 5
    assert 1 < len(connections) <= 5
    server.shutdown()
    server.server_close()


def test_a_host_that_answered_and_refuses_now_is_gone_and_one_that_never_did_is_dead(site: Site) -> None:
    guard, urls = Guard(RULES), [f"http://127.0.0.1:{port}/good/1" for port in (site.port, 9)]
    assert guard.open(urls[0]).read()
    guard._pool.take(("http", "127.0.0.1", site.port)).close()  # type: ignore[union-attr]
    site.stop()
    time.sleep(0.2)
    found = []
    for url in urls:
        with pytest.raises(FetchError) as caught:
            guard.open(url)
        found.append(caught.value.reason)
    assert found == ["gone", "dead_link"]


class Authority:
    """A certificate authority, and a server with a certificate for one name that remembers what it was asked as."""

    def __init__(self, folder: Path, name: str) -> None:
        now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        until = now + timedelta(days=1)
        root = x509.CertificateBuilder(own, own, key.public_key(), 1, now - timedelta(1), until)
        root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.file = folder / "authority.pem"
        self.file.write_bytes(root.sign(key, SHA256()).public_bytes(Encoding.PEM))
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        leaf = x509.CertificateBuilder(own, subject, leaf_key.public_key(), 2, now - timedelta(1), until)
        leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        files = folder / "leaf.pem", folder / "leaf.key"
        files[0].write_bytes(leaf.sign(key, SHA256()).public_bytes(Encoding.PEM))
        files[1].write_bytes(leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.asked: list[tuple[str | None, str | None]] = []
        self.named: list[str | None] = []
        authority = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                authority.asked.append((self.headers["Host"], self.path))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        context.sni_callback = lambda _, asked, __: self.named.append(asked)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # handshakes that the client breaks off
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def test_tls_is_verified_for_the_name_though_the_connection_goes_to_the_checked_address(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path, "photos.example")

    def resolve(host: str, port: int) -> Found:
        return system_names("127.0.0.1", port)

    urls = [f"https://{name}.example:{authority.port}/x" for name in ("photos", "other")]
    assert reasons(fetch(RULES, urls, resolve)) == ["tls", "tls"]  # an authority that nobody knows
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    outcomes = fetch(RULES, urls, resolve)
    assert outcomes[0] == b"ok" and reasons(outcomes) == ["", "tls"]
    assert str(outcomes[1]) == "tls: the certificate is not valid for the host"
    assert authority.asked == [(f"photos.example:{authority.port}", "/x")]
    assert set(authority.named) == {"photos.example", "other.example"}
    authority.server.shutdown()
    authority.server.server_close()


def test_a_name_that_flips_reaches_the_checked_address_or_none(fetch: Fetch, site: Site) -> None:
    asked: list[str] = []

    def flipping(host: str, port: int) -> Found:
        asked.append(host)
        return system_names("127.0.0.1" if asked.count(host) == 1 else "127.0.0.2", port)

    urls = [f"http://{name}.example:{site.port}/good/1" for name in ("a", "b", "c")]
    assert reasons(fetch(RULES, urls, flipping)) == [""] * 3
    assert site.trapped == [] and sorted(asked) == [f"{name}.example" for name in "abc"]


def test_the_socket_itself_is_checked_when_a_resolver_is_fooled(site: Site, tmp_path: Path) -> None:
    """As if a library connected elsewhere than it was told."""

    async def connect() -> None:
        async with Client(RULES, None, 1, tmp_path) as client:
            for address in ("127.0.0.2", "169.254.169.254"):
                with pytest.raises(FetchError, match="forbidden_address"):
                    client._socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)))

    asyncio.run(connect())


def test_a_large_picture_waits_in_a_file_and_comes_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SPILL", 1000)
    for pieces in ([b"ab"], [b"x" * 600, b"y" * 600, b"z"], [b"q" * 5000]):
        body = native.Body(tmp_path)
        for piece in pieces:
            body.add(piece)
        assert (body._file is None) == (body.size <= 1000)
        assert b"".join(body.pieces()) == b"".join(pieces)
    assert list(tmp_path.iterdir()) == []


def test_the_native_layout_reads_back_as_it_was_written(tmp_path: Path) -> None:
    writer = LandingWriter(tmp_path, 3, 2)
    writer.add(1, 'http://a/"x"', 5, [b"ab", b"cde"])
    writer.fail(0, "http://b/", FetchError("http_404", "Not Found", 404))
    writer.add(2, "http://c/", 0, [])
    writer.close()
    landed = Landed(7, tmp_path, 3, 3, 2)
    assert landed.complete and landed.reasons() == ["http_404", None, None]
    assert (landed.read(1), landed.read(2)) == (b"abcde", b"")
    with pytest.raises(FetchError, match="HTTP 404"):
        landed.read(0)
    with tarfile.open(tmp_path / "00003.tar") as tar:
        assert tar.getnames() == [f"{key}.{end}" for key in ("0000301", "0000302") for end in ("jpg", "json")]
        view = tar.extractfile("0000301.json")
        assert view is not None
        assert json.load(view)["url"] == 'http://a/"x"'


def test_hosts_are_forgotten_when_there_are_too_many_and_none_that_is_in_use() -> None:
    hosts: Hosts[threading.Semaphore] = Hosts(RULES, threading.Semaphore)
    held = hosts.enter("held", 0.0)
    for number in range(3 * KEPT):
        hosts.leave(hosts.enter(f"h{number}", float(number)))
    assert len(hosts._hosts) <= KEPT + 1
    assert hosts.enter("held", 1e9) is held
