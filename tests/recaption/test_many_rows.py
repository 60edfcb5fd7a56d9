"""Many rows in bounded memory: 50,000 here, a million with HARMON_SOAK."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun
from tests.recaption.simulator import MODEL

ROWS = 1_000_000 if os.environ.get("HARMON_SOAK") else 50_000
SHARD = 10_000
MOST_MEMORY = 1 << 30
CAPTION = "A wide valley at dawn, with a river between dark pines and two cabins under a pink and golden sky. " * 4
SCRIPT = """
import json, resource, sys
from benchmarks.memory import peak_memory
from pipelines.dataset import Dataset
from recaption.captions import write_captions
from recaption.language_model import served_model
from recaption.prompt import load_prompt
from recaption.recaption import Recaption
from recaption.vllm_engine import VllmEngine
root, address, model = sys.argv[1:]
recaption = Recaption(load_prompt("rewrite-v1"), served_model(model))
commit = write_captions(Dataset(root), recaption, lambda: VllmEngine([address], model))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"captions": commit.rows_out, "memory": peak_memory(), "cpu": used.ru_utime + used.ru_stime}))
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
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(dataset.root), address, MODEL], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        seen = httpx.get(f"{address}/seen", trust_env=False).json()
    finally:
        server.kill()
        server.wait()
    said = json.loads(done.stdout.splitlines()[-1])
    print(said | seen)
    assert said["captions"] == seen["requests"] == ROWS
    assert said["memory"] < MOST_MEMORY
    assert seen["most"] <= 640
