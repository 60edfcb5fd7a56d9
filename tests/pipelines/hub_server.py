"""A hub of one dataset on loopback, speaking as much of the Hugging Face hub's protocol as a download asks for."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMITS = ("a" * 40, "b" * 40)


class Hub:
    """What the server has, and what was asked of it."""

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository = repository
        self.files = files
        self.head = 0
        """Number of the commit that `main` names."""
        self.cut: set[str] = set()
        """Files whose next answer breaks off in the middle."""
        self.altered: set[str] = set()
        """Files that come with other bytes than are announced."""
        self.gated = False
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []

    def info(self, revision: str = "main") -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            one: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if large(name):
                one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(one)
        commit = COMMITS[self.head] if revision == "main" else revision
        return {
            "id": self.repository,
            "sha": commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
        }


def large(name: str) -> bool:
    return not name.endswith((".md", ".json"))


@contextmanager
def serve_hub(hub: Hub) -> Iterator[str]:
    """Serve `hub` while the context lasts; yields its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if hub.gated:
                self.plain(403, b"gated", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"})
            elif match := re.fullmatch(rf"/api/datasets/{hub.repository}/revision/(main|{'|'.join(COMMITS)})", path):
                hub.asked["info"] += 1
                self.plain(200, json.dumps(hub.info(match[1])).encode(), {"Content-Type": "application/json"})
            elif match := re.fullmatch(rf"/datasets/{hub.repository}/resolve/([0-9a-f]{{40}})/(.+)", path):
                self.file(match[1], match[2])
            else:
                self.plain(404, b"", {"X-Error-Code": "RepoNotFound"})

        def file(self, commit: str, name: str) -> None:
            from urllib.parse import unquote

            name = unquote(name)
            data = hub.files[name]
            sha = hashlib.sha256(data).hexdigest() if large(name) else hashlib.sha1(data).hexdigest()
            headers = {"ETag": f'"{sha}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if large(name):
                headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(data))}
            if name in hub.altered:
                data = b"!" + data[1:]
            start, status = 0, 200
            if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start, status = int(found[1]), 206
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                hub.ranges.append(f"{name}@{start}")
            if self.command == "GET":
                hub.asked[name] += 1
            self.plain(status, data[start:], headers, cut=name in hub.cut and self.command == "GET")
            if self.command == "GET":
                hub.cut.discard(name)

        def plain(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
