"""The guard connects to permitted addresses only, whatever a link, a redirect or a name server says."""

import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import fetch
from pipelines.course import MAX_REDIRECTS
from pipelines.guard import Guard
from pipelines.rules import FetchError, Rules

INSIDE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
)
LOOPBACK = Rules(allow=("127.0.0.1/32",), max_bytes=1000, retries=1, timeout=2, per_second=1e6)


def no_sleep(seconds: float) -> None:
    """Pauses are taken for passed."""


GUARD = Guard(LOOPBACK, sleep=no_sleep)


class Host:
    """A server on a loopback address that remembers the paths it was asked for."""

    def __init__(self, address: str) -> None:
        self.asked: list[str] = []
        host = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.path)
                answer(self, host.asked.count(self.path))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer((address, 0), Answer)
        self.server.daemon_threads = True
        self.url = f"http://{address}:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def answer(request: BaseHTTPRequestHandler, times: int) -> None:
    """What the test servers say: the path holds the wish."""
    wish, _, argument = request.path.lstrip("/").partition("/")
    body, status, headers = b"picture", 200, {}
    if wish == "redirect":
        status, headers = 302, {"Location": argument}
    elif wish == "loop":
        status, headers = 302, {"Location": "/loop"}
    elif wish == "status":
        status = int(argument)
    elif wish == "busy-once":
        status = 503 if times == 1 else 200
    elif wish == "short":
        headers = {"Content-Length": "500"}
    elif wish == "huge":
        headers = {"Content-Length": "2000"}
    elif wish == "slowly":
        threading.Event().wait(0.2)
        status, headers = 302, {"Location": "/slowly"}
    if wish == "headers":
        drip_headers(request)
        return
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    try:
        if wish in {"endless", "drip"}:
            while True:
                request.wfile.write(b"x" * (100 if wish == "endless" else 1))
                request.wfile.flush()
                threading.Event().wait(0 if wish == "endless" else 0.05)
        request.wfile.write(body)
    except ConnectionError:
        pass


def drip_headers(request: BaseHTTPRequestHandler) -> None:
    """Header after header, and no end: each of them comes within the time to wait for more bytes."""
    try:
        request.wfile.write(b"HTTP/1.0 200 OK\r\n")
        for _ in range(90):  # http.client itself gives up after a hundred
            request.wfile.write(b"X-More: 1\r\n")
            threading.Event().wait(0.05)
    except ConnectionError:
        pass


@pytest.fixture
def allowed() -> Iterator[Host]:
    host = Host("127.0.0.1")
    yield host
    host.server.shutdown()
    host.server.server_close()


@pytest.fixture
def forbidden() -> Iterator[Host]:
    host = Host("127.0.0.2")
    yield host
    host.server.shutdown()
    host.server.server_close()


def reason(url: str, guard: Guard = GUARD) -> str:
    with pytest.raises(FetchError) as caught:
        guard.open(url)
    return caught.value.reason


def test_a_permitted_link_is_fetched_whole(allowed: Host) -> None:
    with GUARD.open(f"{allowed.url}/a picture?x=ä") as response:
        assert response.read() == b"picture"
        assert response.headers["Server"]
    assert allowed.asked == ["/a%20picture?x=%C3%A4"]


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:image/png;base64,AA", "//host/x"])
def test_only_http_and_https_are_opened(url: str) -> None:
    assert reason(url if ":" in url else f"gopher:{url}") == "forbidden_scheme"


@pytest.mark.parametrize("url", ["http://user:secret@example.com/", "http:///path", "http://[::1/", "http://a:99999/"])
def test_a_link_with_a_user_or_without_a_host_is_refused(url: str) -> None:
    assert reason(url) == "bad_url"


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.2]/",
        "http://2130706434/",
        "http://0x7f000002/",
        "http://localhost:8001/",
    ],
)
def test_an_inner_address_is_refused_however_it_is_written(url: str) -> None:
    assert reason(url, Guard(Rules(timeout=2))) == "forbidden_address"


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "fe80::1%eth0",
        "fc00::1",
    ],
)
def test_no_way_of_writing_an_inner_ipv6_address_is_permitted(address: str) -> None:
    assert not Rules().permits(address)


@pytest.mark.parametrize(
    "address", ["fec0::1", "ff02::1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "localhost", ""]
)
def test_what_is_no_address_of_one_public_host_is_not_permitted(address: str) -> None:
    assert not Rules().permits(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_are_permitted(address: str) -> None:
    assert Rules().permits(address)


@given(st.sampled_from(INSIDE).flatmap(lambda net: st.ip_addresses(network=net)))
def test_every_address_of_inner_networks_is_refused(ip: ipaddress.IPv4Address) -> None:
    assert not Rules().permits(str(ip))
    assert not Rules().permits(f"::ffff:{ip}")


def test_a_redirect_to_a_forbidden_address_is_not_followed(allowed: Host, forbidden: Host) -> None:
    assert reason(f"{allowed.url}/redirect/{forbidden.url}/secret") == "forbidden_address"
    assert forbidden.asked == []


def test_a_redirect_to_a_file_is_not_followed(allowed: Host) -> None:
    assert reason(f"{allowed.url}/redirect/file:///etc/hostname") == "forbidden_scheme"


def test_a_redirect_to_a_permitted_address_is_followed_and_chains_end(allowed: Host) -> None:
    with GUARD.open(f"{allowed.url}/redirect//other") as response:
        assert (response.read(), response.url) == (b"picture", f"{allowed.url}/other")
    assert reason(f"{allowed.url}/loop") == "redirects"
    assert allowed.asked.count("/loop") == MAX_REDIRECTS + 1


def test_a_name_that_changes_its_answer_reaches_only_the_checked_address(
    allowed: Host, forbidden: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([allowed, forbidden])
    real = socket.getaddrinfo

    def flipping(host: str, port: int, **kinds: int) -> object:
        address, its_port = next(answers).server.server_address[:2]
        return real(str(address), its_port, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", flipping)
    with GUARD.open("http://flipping.example/first") as response:
        assert response.read() == b"picture"
    assert reason("http://flipping.example/second") == "forbidden_address"
    assert (allowed.asked, forbidden.asked) == (["/first"], [])


def test_a_name_with_one_forbidden_address_among_others_is_refused(
    allowed: Host, forbidden: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    both = [entry for host in (allowed, forbidden) for entry in real(*host.server.server_address[:2], type=1)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert reason("http://both.example/") == "forbidden_address"
    assert allowed.asked == forbidden.asked == []


@pytest.mark.parametrize("wish", ["huge", "endless"])
def test_a_body_over_the_limit_is_given_up(allowed: Host, wish: str) -> None:
    assert reason(f"{allowed.url}/{wish}") == "too_large"


@pytest.mark.parametrize("wish", ["drip", "headers", "slowly"])
def test_a_drip_ends_after_the_seconds_of_a_link(allowed: Host, wish: str) -> None:
    """Of body, of headers, or of redirects that each come in time."""
    began = time.monotonic()
    assert reason(f"{allowed.url}/{wish}", Guard(replace(LOOPBACK, max_seconds=0.3, retries=0))) == "timeout"
    assert time.monotonic() - began < 1.5


def test_a_handshake_that_never_ends_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        began = time.monotonic()
        assert reason(url, Guard(replace(LOOPBACK, max_seconds=0.3, retries=0))) == "timeout"
        assert time.monotonic() - began < 1.5


def test_a_body_shorter_than_announced_is_no_picture(allowed: Host) -> None:
    assert reason(f"{allowed.url}/short") == "dropped"
    assert len(allowed.asked) == 2


def test_transient_failures_are_asked_again_and_others_are_not(allowed: Host) -> None:
    with GUARD.open(f"{allowed.url}/busy-once") as response:
        assert response.read() == b"picture"
    assert reason(f"{allowed.url}/status/404") == "http_404"
    assert allowed.asked == ["/busy-once"] * 2 + ["/status/404"]


def test_a_closed_port_and_an_unknown_name_are_dead_links() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        assert reason(f"http://127.0.0.1:{unheard.getsockname()[1]}/") == "dead_link"
    assert reason("http://no-such-name.invalid/") == "dead_link"


def test_a_certificate_that_nobody_vouches_for_is_refused(allowed: Host, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    files = tmp_path / "key.pem", tmp_path / "certificate.pem"
    files[0].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files[1].write_bytes(certificate.sign(key, SHA256()).public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    allowed.server.socket = context.wrap_socket(allowed.server.socket, server_side=True)
    assert reason(allowed.url.replace("http:", "https:") + "/x") == "tls"
    assert allowed.asked == []


def test_an_installed_guard_governs_urlopen_and_every_other_connection(allowed: Host, forbidden: Host) -> None:
    """In a process of its own, loaded by path as the launcher does, since an audit hook stays for good."""
    script = f"""
import importlib.util, socket, sys, urllib.request
spec = importlib.util.spec_from_file_location("landing", {str(fetch.LANDING)!r})
landing = importlib.util.module_from_spec(spec); spec.loader.exec_module(landing)
landing.add_pipelines()
from pipelines import guard, rules
guard.install(guard.Guard(rules.Rules(allow=("127.0.0.1/32",))))
assert urllib.request.urlopen({allowed.url!r} + "/x").read() == b"picture"
for attempt in (lambda: urllib.request.urlopen("file:///etc/hostname"),
                lambda: urllib.request.urlopen({forbidden.url!r}),
                lambda: socket.create_connection(("127.0.0.2", {forbidden.server.server_address[1]})),
                lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.2", 53)),
                lambda: socket.socket().connect(("localhost", {forbidden.server.server_address[1]}))):
    try: attempt()
    except rules.FetchError: continue
    sys.exit("a forbidden connection was made")
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (allowed.asked, forbidden.asked) == (["/x"], [])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_the_guard_fail_otherwise_than_by_a_reason(text: str) -> None:
    """Every name leads to a forbidden address here, so that nothing is asked of a network."""
    inner = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 1))]
    with patch("socket.getaddrinfo", return_value=inner):
        for url in (text, f"http://{text}", f"https://a.example:{text}", f"http://a.example/{text}"):
            reason(url)
