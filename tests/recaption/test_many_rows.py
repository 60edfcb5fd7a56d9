"""Many rows in bounded memory: 50,000 here, a million with HARMON_SOAK."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun
from tests.recaption.captioned import write_scenes
from tests.recaption.simulator import MODEL, completion, simulator

ROWS = 1_000_000 if os.environ.get("HARMON_SOAK") else 50_000
SHARD = 10_000
MOST_MEMORY = 1 << 30
CAPTION = "A wide valley at dawn, with a river between dark pines and two cabins under a pink and golden sky. " * 4
SCRIPT = """
import json, resource, sys, tracemalloc
from benchmarks.memory import peak_memory
from pipelines.dataset import Dataset
from recaption.captions import write_captions
from recaption.language_model import served_model
from recaption.prompt import load_prompt
from recaption.recaption import Recaption
from recaption.vllm_engine import VllmEngine
root, address, model, prompt, concurrency, traced = sys.argv[1:]
if traced == "True":
    tracemalloc.start()
recaption = Recaption(load_prompt(prompt), served_model(model))
commit = write_captions(Dataset(root), recaption, lambda: VllmEngine([address], model, int(concurrency)))
used = resource.getrusage(resource.RUSAGE_SELF)
memory = tracemalloc.get_traced_memory()[1] if traced == "True" else peak_memory()
print(json.dumps({"captions": commit.rows_out, "memory": memory, "cpu": used.ru_utime + used.ru_stime}))
"""


def write_rows(root: Path) -> Dataset:
    """ROWS rows with captions of their own; the pictures are bytes that nobody looks at."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {"source": "many"}))
    for shard in run.pending(range(ROWS // SHARD)):
        output = run.shard(shard)
        rows = []
        for n in range(shard * SHARD, (shard + 1) * SHARD):
            key = sample_key("many", str(n))
            output.images().add(key, b"a picture", "jpg", {})
            named = {"key": key, "source": "many", "row_id": str(n), "task": "image2text"}
            rows.append(named | {"caption": f"Scene {n}. {CAPTION}"})
        output.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        output.finish(len(rows))
    run.commit({"many": {"licence": "CC0-1.0", "terms": "open"}})
    return dataset


def captioned(dataset: Dataset, address: str, prompt: str, concurrency: int, traced: bool = False) -> dict[str, Any]:
    """What a process of its own says of its peak memory after captioning the dataset.

    `traced`: of what Python holds, without the shards' memory maps, which the kernel takes back as it likes.
    """
    command = [sys.executable, "-c", SCRIPT, str(dataset.root), address, MODEL, prompt, str(concurrency), str(traced)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_rows_are_asked_once_each_in_bounded_memory(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "many")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.recaption.simulator", "0.02"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        address = server.stdout.readline().strip()
        said = captioned(dataset, address, "rewrite-v1", 640)
        seen = httpx.get(f"{address}/seen", trust_env=False).json()
    finally:
        server.kill()
        server.wait()
    print(said | seen)
    assert said["captions"] == seen["requests"] == ROWS
    assert said["memory"] < MOST_MEMORY
    assert seen["most"] <= 640


@pytest.mark.slow
def test_pictures_take_no_more_memory_where_there_are_more_of_them(tmp_path: Path) -> None:
    """Each is a megabyte when it is sent, and is sent three times: all of its answers are refusals."""
    encoded = io.BytesIO()
    Image.effect_noise((1260, 780), 90).convert("RGB").save(encoded, "JPEG", quality=95)
    peaks = []
    with simulator(lambda message: completion("I am sorry.")) as server:
        for rows in (12, 92):

            def image(number: int) -> bytes:
                return encoded.getvalue() + b"%d" % number  # decodes alike, and is another image

            scenes = write_scenes(tmp_path / str(rows), image=image, shards=2, rows=rows // 2)
            said = captioned(scenes, server.address, "caption-dense-v1", 4, traced=True)
            assert said["captions"] == 0
            peaks.append(said["memory"])
        assert server.seen.requests == 3 * (10 + 90)
        sent = max(len(json.dumps(body)) for body in server.seen.bodies)
    print([peak >> 20 for peak in peaks], sent >> 10)
    assert peaks[1] - peaks[0] < 8 << 20  # 80 further pictures; held until they pass they would be 60 MB
