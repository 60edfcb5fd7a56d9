"""The launcher of an engine with a name server that lies: a script that stands in for pipelines/landing.py.

Names below .test lead to loopback: `meta…` to a cloud's metadata service, `both…` to a permitted and a forbidden
address, `mapped…` to one written as IPv6; `flip…` to 127.0.0.1 when asked first and to 127.0.0.2 ever after, `flop…`
the other way round. All others lead to 127.0.0.1.

Every address that anything here tries to connect to, before any rule can refuse it, is a line of the file CONNECTED,
where there is one.
"""

import socket
import sys
from collections import Counter
from pathlib import Path

LANDING = Path(__file__).parents[2] / "pipelines" / "landing.py"
CONNECTED = Path(__file__).with_suffix(".connected")  # a test copies this file to a folder of its own
OPEN, BARRED = "127.0.0.1", "127.0.0.2"
asked: Counter[str] = Counter()
real = socket.getaddrinfo


def names(host, port, *arguments, **options):  # type: ignore[no-untyped-def]
    """In the place of socket.getaddrinfo."""
    if not host.endswith(".test"):
        return real(host, port, *arguments, **options)
    asked[host] += 1
    addresses = {
        "meta": ["169.254.169.254"],
        "both": [OPEN, BARRED],
        "mapp": [f"::ffff:{BARRED}"],
        "flip": [OPEN if asked[host] == 1 else BARRED],
        "flop": [BARRED if asked[host] == 1 else OPEN],
    }.get(host[:4], [OPEN])
    return [entry for one in addresses for entry in real(one, port, *arguments, **options)]


def note(event, arguments):  # type: ignore[no-untyped-def]
    """Audit hook: asked before the guard's, which comes later."""
    if (
        CONNECTED.exists()
        and event in {"socket.connect", "socket.sendto", "socket.sendmsg"}
        and isinstance(arguments[1], tuple)
    ):
        with CONNECTED.open("a") as out:
            out.write(f"{arguments[1][0]}\n")


if __name__ in {"__main__", "__mp_main__"}:
    sys.addaudithook(note)
    socket.getaddrinfo = names
    exec(compile(LANDING.read_bytes(), LANDING, "exec"), {"__name__": __name__, "__file__": str(LANDING)})
