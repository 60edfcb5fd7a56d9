"""A headless Chromium that a test drives through its DevTools protocol."""

import base64
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --remote-debugging-port=0"
)


class Tab:
    """One page of the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.numbers = connection, itertools.count(1)
        self.said: list[dict[str, Any]] = []
        """Events: what the page logged, threw and asked for."""
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self.numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.said.append(message)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The value once it is true."""
        ends = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < ends, f"waited in vain for {script}"
            time.sleep(0.02)
        return value

    def choose_file(self, selector: str, file: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def screenshot(self, file: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def problems(self) -> list[str]:
        """What the page threw, or its browser complained of."""
        names = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(one["params"]) for one in self.said if one["method"] in names]

    def asked_for(self) -> set[str]:
        return {one["params"]["request"]["url"] for one in self.said if one["method"] == "Network.requestWillBeSent"}


@contextmanager
def browsing(chromium: str, folder: Path, address: str) -> Iterator[Tab]:
    """A tab that shows `address`; the browser's files lie below `folder`."""
    profile = folder / "profile"
    command = [chromium, *FLAGS.split(), f"--user-data-dir={profile}", "--window-size=1280,1500", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port = _port(profile / "DevToolsActivePort")
            [page] = [one for one in httpx.get(f"http://127.0.0.1:{port}/json").json() if one["type"] == "page"]
            with connect(page["webSocketDebuggerUrl"], max_size=1 << 26) as connection:
                tab = Tab(connection)
                tab.call("Page.navigate", url=address)
                tab.wait("document.readyState === 'complete' && location.protocol.startsWith('http')")
                yield tab
        finally:
            process.terminate()
            process.wait(20)


def _port(file: Path) -> int:
    ends = time.monotonic() + 60
    while not file.is_file() or not file.read_text():
        assert time.monotonic() < ends, "Chromium did not start"
        time.sleep(0.05)
    return int(file.read_text().split()[0])
