"""A person draws a picture on the server's page, sees the canvas fill in, and asks about it; in a real browser."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from browser import browsing
from demo_checkpoint import make_demo
from PIL import Image
from served import metrics, served, wait_until

from harmon.trained import Trained, load
from tests.parts import need

torch.set_num_threads(1)
CHROMIUM = shutil.which("chromium")
KEY = "a-key-of-tests"
WATCH = """
window.seen = [];
new MutationObserver(() => seen.push(document.getElementById('canvas').src))
  .observe(document.getElementById('canvas'), {attributes: true, attributeFilter: ['src']});
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return load(make_demo(tmp_path_factory.mktemp("runs") / "demo"))


def test_a_person_draws_asks_stops_and_is_told_of_a_wrong_key(demo: Trained, tmp_path: Path) -> None:
    need(CHROMIUM is not None, "Chromium is not installed: apt-get install chromium")
    with served(demo, KEY) as address, browsing(str(CHROMIUM), tmp_path, address) as tab:
        tab.run("document.getElementById('prompt').value = 'a red circle on the left'")
        tab.run("document.getElementById('start').click()")
        assert "missing or wrong" in tab.wait("document.querySelector('#told.error')?.textContent")

        tab.said.clear()
        tab.run(f"document.getElementById('key').value = '{KEY}'; {WATCH}")
        tab.run("document.getElementById('seed').value = '7'; document.getElementById('start').click()")
        assert tab.wait("document.getElementById('take').disabled === false")
        seen = [one for one in tab.run("seen") if one]
        assert len(set(seen)) > 4  # of eight AR steps; two that come in one piece are seen as one
        assert tab.run("document.getElementById('told').textContent") == "Drawn with seed 7."
        assert tab.run("document.getElementById('canvas').naturalWidth") == 128

        tab.run("document.getElementById('take').click()")
        tab.run("document.getElementById('question').value = 'What is it? <img src=x onerror=alert(1)>'")
        tab.run("document.getElementById('send').click()")
        tab.wait("document.querySelectorAll('#said li.assistant:not(.waiting)').length === 1")
        assert tab.run("document.querySelectorAll('#said img').length") == 0
        assert tab.run("document.querySelectorAll('#said li.error').length") == 0

        upload = tmp_path / "mine.png"
        Image.linear_gradient("L").resize((1500, 900)).save(upload)
        tab.choose_file("#file", upload)
        tab.wait("document.getElementById('shown').naturalWidth === 1024")
        for turns in (1, 2):  # the second goes on with the first
            tab.run(
                "document.getElementById('question').value = 'What is it?'; document.getElementById('send').click()"
            )
            tab.wait(f"document.querySelectorAll('#said li.assistant:not(.waiting):not(.error)').length === {turns}")
        tab.screenshot(Path(os.environ.get("HARMON_SCREENSHOTS", tmp_path)) / "studio.png")

        tab.run(
            "for (const [id, value] of [['steps', 64], ['size', '512x512']]) document.getElementById(id).value = value"
        )
        tab.run("document.getElementById('start').click()")
        tab.wait("document.getElementById('stop').hidden === false")
        tab.run("document.getElementById('stop').click()")
        tab.wait("document.getElementById('told').textContent === 'Stopped.'")
        counted = lambda: metrics(address, Authorization=f"Bearer {KEY}")  # noqa: E731
        wait_until(lambda: counted()['harmon_jobs_total{how="cancelled",kind="draw"}'] == 1)
        assert [one for one in tab.problems() if "favicon" not in one] == []
        assert {url.split(":")[0] for url in tab.asked_for() if not url.startswith(address)} <= {"data"}
