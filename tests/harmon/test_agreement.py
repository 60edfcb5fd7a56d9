"""What two workers do alike: decisions of rank 0, notices of their machines, verdicts of the guard."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from harmon.training.agreement import Notices, cpu_group, rank_0_decides
from harmon.training.execution import GuardConfig
from harmon.training.guard import Guard, largest
from pipelines.errors import HarmonError

torch.set_num_threads(1)
ASKS = 6


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> list[dict]:
    """What each of two workers said."""
    folder = tmp_path_factory.mktemp("two")
    mp.start_processes(_worker, args=(str(folder),), nprocs=2, start_method="spawn")
    return [json.loads((folder / str(rank)).read_text()) for rank in range(2)]


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {"decided": _decided(rank), "heard": _heard(rank), "skipped": _skipped(rank)}
    (Path(folder) / str(rank)).write_text(json.dumps(found))
    dist.destroy_process_group()


def _decided(rank: int) -> list[str]:
    def refuse() -> str:
        raise HarmonError(f"worker {rank} refuses")

    group = cpu_group()
    decided = [rank_0_decides(lambda: f"worker {rank}", group)]
    try:
        rank_0_decides(refuse, group)
    except HarmonError as error:
        decided.append(str(error))
    return decided


def _heard(rank: int) -> list[str]:
    """Worker 1 alone is told, from its fourth question on."""
    asked = [0]

    def told() -> str:
        asked[0] += 1
        return "stop" if rank == 1 and asked[0] >= 4 else "go on"

    notices, heard = Notices(told, seconds=0.0), []
    for _ in range(ASKS):
        notices.begin()
        heard.append(notices.heard())
    return heard


def _skipped(rank: int) -> list[bool]:
    """The workers' norms differ in step 41, where worker 1 alone sees a spike, and in 43, where it sees no number."""
    guard, skipped = Guard(GuardConfig(sigmas=6.0, window=32), torch.device("cpu")), []
    own = {41: 1.0 + 2.0 * rank, 43: math.nan if rank else 1.0}
    for step in range(45):
        norm = own.get(step, 1.0 + 0.01 * math.cos(step))
        skipped.append(bool(guard.judge(*largest(torch.tensor(1.0 + 0.01 * math.sin(step)), torch.tensor(norm)))))
    return skipped


def test_rank_0_decides_for_all_and_what_it_refuses_all_refuse(said):
    assert [one["decided"] for one in said] == [["worker 0", "worker 0 refuses"]] * 2


def test_all_hear_in_one_step_what_one_is_told(said):
    assert [one["heard"] for one in said] == [["go on"] * 3 + ["stop"] * 3] * 2


def test_all_skip_a_step_that_one_would_skip(said):
    assert said[0]["skipped"] == said[1]["skipped"]
    assert [step for step, skip in enumerate(said[0]["skipped"]) if skip] == [41, 43]


def test_between_two_questions_the_last_answer_stands():
    notices = Notices(lambda: "save")
    notices.begin()
    assert notices.heard() == "save"
    assert Notices(None).heard() == "go on"
