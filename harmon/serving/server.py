"""One server process: the application under uvicorn."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from pipelines.errors import ConfigurationError, HarmonError

KEY_VARIABLE = "HARMON_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEARD = (signal.SIGINT, signal.SIGTERM)
CONNECTIONS = 1024  # at a time; a further one is told 503 at once
DRAIN = 10  # seconds that open requests have when the server is told to stop


def api_key(file: Path | None) -> str | None:
    """The key in `file`, else of the environment, else None; never of the command line, which others may read.

    Raises:
        ConfigurationError: the file cannot be read, or a key is empty or has blanks or other letters than ASCII.
    """
    try:
        key = os.environ.get(KEY_VARIABLE) if file is None else file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The API key file {file} cannot be read ({error}); name one that holds a key."
        ) from None
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(f"The API key of {file or KEY_VARIABLE} is not one word of ASCII letters; write one.")
    return key


def check_reach(host: str, key: str | None, open_to_all: bool) -> None:
    """Raises ConfigurationError where a server that others reach has no key, unless that is said to be meant."""
    if host not in LOOPBACK and key is None and not open_to_all:
        raise ConfigurationError(
            f"A server on {host} can be used by everybody who reaches it: set {KEY_VARIABLE} or --key-file, or say "
            "--no-key where a proxy asks for one."
        )


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises HarmonError where it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise HarmonError(
            f"Nothing can listen on {host} port {port} ({error}); name another --port or --host."
        ) from None


def server(app: Starlette) -> uvicorn.Server:
    """Answers, once run, until SIGINT or SIGTERM; then open requests have DRAIN seconds."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=DRAIN,
        server_header=False,
        log_level="warning",
        access_log=False,
    )
    return uvicorn.Server(config)


def serve(app: Starlette, listening: socket.socket) -> None:
    """Until a person or a supervisor has had enough, which is no error. For a process's main thread."""
    for one in HEARD:  # uvicorn ends in order, then raises the signal again
        signal.signal(one, lambda *_: None)
    server(app).run(sockets=[listening])
