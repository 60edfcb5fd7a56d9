"""Serves a published folder on the loopback interface, in threads of this process."""

import errno
import mimetypes
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pipelines.errors import HarmonError


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serve(folder: Path, port: int) -> Iterator[str]:
    """Serve the files below `folder` at http://127.0.0.1:`port` while the context lasts; yields that address.

    `/redirect?to=URL` answers with a redirect to URL. Port 0 takes any free port.

    Raises:
        HarmonError: the port is taken.
    """
    try:
        server = _Server(folder, port)
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
            raise
        raise HarmonError(
            f"port {port} of 127.0.0.1 cannot be opened; set web.port in the recipe to a free one"
        ) from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="web", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # a downloader opens many connections at once; a full queue costs each a second
    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder.resolve()
        super().__init__(("127.0.0.1", port), _Answer)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that goes away in the middle is no news."""


class _Answer(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        if parts.path == "/redirect":
            self._redirect(urllib.parse.parse_qs(parts.query).get("to", [""])[0])
            return
        name = urllib.parse.unquote(parts.path).lstrip("/").replace("\0", "")
        path = (self.server.folder / name).resolve()
        if not path.is_relative_to(self.server.folder) or not path.is_file():
            self._answer(404, "text/plain", b"not found\n")
            return
        self._answer(200, mimetypes.guess_type(path.name)[0] or "application/octet-stream", path.read_bytes())

    def _redirect(self, target: str) -> None:
        if "\r" in target or "\n" in target or not target:
            self._answer(400, "text/plain", b"to=URL is needed\n")
            return
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: thousands of requests are no news."""
