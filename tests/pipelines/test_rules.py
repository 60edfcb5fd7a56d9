"""What a link, an address and an answer must be, whichever engine asks."""

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rules import FetchError, Link, Rules, failure_of, link_of, parsed, redirected, seconds_of


def reason(url: str) -> str:
    with pytest.raises(FetchError) as caught:
        link_of(url)
    return caught.value.reason


def test_a_link_is_taken_apart_and_encoded() -> None:
    link = link_of("HTTPS://Bücher.example./ä b?q=ü#part")
    assert (link.scheme, link.host, link.port) == ("https", "xn--bcher-kva.example", 443)
    assert link.target == "/%C3%A4%20b?q=%C3%BC"
    assert link_of("http://[2606:4700::1111]:8080").absolute == "http://[2606:4700::1111]:8080/"


@pytest.mark.parametrize(
    ("host", "means"),
    [("2130706433", "127.0.0.1"), ("0x7f.1", "127.0.0.1"), ("0177.0.0.1", "127.0.0.1"), ("127.1", "127.0.0.1"),
     ("①②⑦.⓪.⓪.①", "127.0.0.1"), ("127。0。0。1", "127.0.0.1"), ("LOCALHOST.", "localhost")],
)  # fmt: skip
def test_other_spellings_of_an_address_become_the_address(host: str, means: str) -> None:
    assert link_of(f"http://{host}/").host == means


@pytest.mark.parametrize(
    "url",
    ["http://a@b/", "http://:p@b/", "http://evil\\@good/", "http://a b/", "http://a%00b/", "http://a:0/", "http://a:x/",
     "http://[fe80::1%25eth0]/", "http://256.1.1.1/", "http://1.2.3.4.5/", "picture.jpg", "//host/x", "http://../",
     "http://a..b/", "http://" + "a" * 9000],
)  # fmt: skip
def test_a_malformed_link_is_refused(url: str) -> None:
    assert reason(url) == "bad_url"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "data:,x", "gopher://a/", "javascript:alert(1)"])
def test_another_scheme_is_refused(url: str) -> None:
    assert reason(url) == "forbidden_scheme"


def test_no_line_break_of_a_link_reaches_the_request() -> None:
    link = link_of("http://a.example/x\r\nHost: evil\r\n?\n\ty\0")
    assert not set("\r\n\t\0 ") & set(link.target + link.host)


@given(st.text(max_size=80))
def test_every_text_is_a_link_or_has_a_reason(text: str) -> None:
    for url in (text, f"http://{text}", f"https://a.example/{text}", f"http://a.example:{text}/"):
        try:
            link = link_of(url)
        except FetchError as error:
            assert error.reason in {"bad_url", "forbidden_scheme"}
        else:
            assert link.host.isascii() and link.target.startswith("/") and link.target.isascii()


def test_redirects_are_judged_like_links() -> None:
    link = link_of("https://a.example/one/two")
    assert redirected(link, "../three").absolute == "https://a.example:443/three"
    assert redirected(link, "//b.example/x").host == "b.example"
    assert redirected(link, "/\xc3\xa4").target == "/%C3%A4"  # a header's bytes, as http.client gives them
    for location, why in {
        "file:///etc/passwd": "forbidden_scheme",
        "http://u@b/": "bad_url",
        "http://[": "bad_url",
    }.items():
        with pytest.raises(FetchError) as caught:
            redirected(link, location)
        assert caught.value.reason == why


@pytest.mark.parametrize(
    "address",
    ["168.63.129.16", "::ffff:168.63.129.16", "64:ff9b:1::808:808", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
     "2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:c0a8:1", "fd00:ec2::254", "::ffff:169.254.169.254",
     "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe", "100.100.100.200", "192.0.0.192", "198.18.0.1", "::"],
)  # fmt: skip
def test_addresses_that_lead_inside_are_refused(address: str) -> None:
    assert not Rules().permits(address)


def test_the_allow_list_opens_an_address_in_every_form() -> None:
    rules = Rules(allow=("127.0.0.1/32",))
    assert rules.permits("127.0.0.1") and rules.permits("::ffff:127.0.0.1") and not rules.permits("127.0.0.2")


def found(*addresses: str, port: int = 80) -> list[tuple[object, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


def test_one_forbidden_address_bars_the_name_and_no_address_is_no_link() -> None:
    for addresses, why in {("8.8.8.8", "10.0.0.1"): "forbidden_address", (): "dead_link"}.items():
        with pytest.raises(FetchError) as caught:
            Rules().checked("a.example", found(*addresses))
        assert caught.value.reason == why


@pytest.mark.parametrize("port", [1, 22, 25, 445, 6667, 2049, 5060])
def test_ports_of_other_protocols_are_barred_on_the_internet_and_open_on_a_mirror(port: int) -> None:
    with pytest.raises(FetchError) as caught:
        Rules().checked("a.example", found("8.8.8.8", port=port))
    assert caught.value.reason == "forbidden_port"
    assert Rules(allow=("8.8.8.8/32",)).checked("a.example", found("8.8.8.8", port=port))
    assert Rules().checked("a.example", found("8.8.8.8", port=8080))


def test_an_address_of_this_machine_is_known_as_its_own() -> None:
    assert Rules._is_own(socket.AF_INET, "127.0.0.1")
    assert not Rules._is_own(socket.AF_INET, "8.8.8.8")


@pytest.mark.parametrize(
    ("error", "why"),
    [(socket.EAI_AGAIN, "name_server"), (socket.EAI_FAIL, "name_server"), (socket.EAI_NONAME, "dead_link")],
)
def test_a_dumb_name_server_is_told_from_an_unknown_name(error: int, why: str) -> None:
    def resolve(host: str, port: int) -> list[tuple[object, ...]]:
        raise socket.gaierror(error, "no")

    with pytest.raises(FetchError) as caught:
        Rules().resolved("a.example", 80, resolve)
    assert caught.value.reason == why


def test_an_error_of_the_disk_is_no_reason_of_a_link() -> None:
    with pytest.raises(OSError, match="full"):
        failure_of(OSError(28, "full"))
    assert failure_of(OSError(24, "too many open files")).reason == "local"


@pytest.mark.parametrize(
    ("headers", "out"),
    [(["noai"], True), (["NoIndex, nofollow"], True), (["otherbot: noai"], False), (["harmon: noai"], True),
     (["nofollow", "noimageai"], True), (["otherbot: nofollow, noai"], False), (["*: noai"], True),
     (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], True), (["max-snippet: 5, noindex"], True),
     (["none"], True), (["otherbot: none"], False), (["NONE , archive"], True),
     (["otherbot: nofollow, harmon: noindex"], True), (["index, follow"], False), ([""], False), ([], False)],
)  # fmt: skip
def test_opt_out_directives_bind_us_when_they_name_us_or_nobody(headers: list[str], out: bool) -> None:
    try:
        Rules().judge(200, 10, headers, None)
    except FetchError as error:
        assert out and error.reason == "opted_out" and error.detail.startswith("HTTP 200: ")
    else:
        assert not out
    Rules(opt_out=()).judge(200, 10, headers, None)


def test_which_directives_are_obeyed_can_be_chosen() -> None:
    Rules(opt_out=("noai",)).judge(200, 10, ["noindex"], None)
    Rules(opt_out=("noai",)).judge(200, 10, ["none"], None)
    with pytest.raises(FetchError):
        Rules(opt_out=("noindex",)).judge(200, 10, ["noindex"], None)


def test_retry_after_is_seconds_or_a_date_and_nonsense_is_nothing() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert seconds_of("120") == 120 and 25 < (seconds_of(later) or 0) <= 31
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for nonsense in (None, "", "soon", "-5", "1e9", "99999999999999999999"):
        assert seconds_of(nonsense) is None


def test_only_transient_failures_are_tried_again_after_jittered_growing_pauses() -> None:
    rules, busy = Rules(retries=3, max_pause=60), FetchError("http_503", "", 503)
    for attempt, most in enumerate([0.5, 1.0, 2.0]):
        pauses = [rules.pause_after(busy, attempt) for _ in range(200)]
        assert all(pause is not None and 0 <= pause <= most for pause in pauses)
        assert max(pause or 0 for pause in pauses) > most / 2 > min(pause or 0 for pause in pauses)
    assert rules.pause_after(busy, 3) is None
    assert (rules.pause_after(FetchError("http_429", "", 429, 20), 0) or 0) >= 20
    assert rules.pause_after(FetchError("http_429", "", 429, 61), 0) is None
    for why in ("http_404", "forbidden_address", "too_large", "dead_link", "tls", "opted_out", "paused"):
        assert rules.pause_after(FetchError(why, ""), 0) is None


def test_a_failure_survives_being_written_down() -> None:
    error = FetchError("http_404", "Not Found", 404)
    assert str(error) == "http_404: HTTP 404: Not Found"
    assert (parsed(str(error)).reason, parsed(str(error)).detail) == ("http_404", "HTTP 404: Not Found")
    assert parsed("<urlopen error>").reason == "fetch_failed"


def test_a_link_keeps_what_redirects_are_relative_to() -> None:
    assert isinstance(link := link_of("http://a.example/x#y"), Link) and link.url.endswith("#y")
