"""Lines of metrics beside metrics.jsonl, and what speed they tell."""

import sys
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from miniature import make_job, small_stage

from harmon.model.config import HarmonConfig
from harmon.text import ChatText
from harmon.training import meter, sinks
from harmon.training.data import StageData
from harmon.training.device import peak_of
from harmon.training.memory import Lengths
from harmon.training.meter import Meter
from harmon.training.mixture import Block
from harmon.training.sinks import SinkSettings, open_sinks, scalars
from harmon.training.speed import Speed, peak_memory
from harmon.training.stage import load_stage
from pipelines.errors import ConfigurationError

LINE = {"step": 20, "loss": {"text": 2.0, "text2image": 1.5}, "masked": [0.5, 1.0], "norm": None, "skipped": []}
FLAT = {"loss/text": 2.0, "loss/text2image": 1.5, "masked": 0.75}


def test_a_line_is_flattened_to_its_numbers():
    assert scalars(LINE) == FLAT


def test_without_an_option_there_is_no_sink(tmp_path):
    with open_sinks(SinkSettings(), tmp_path, "run") as sink:
        assert sink is None
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_event_files(tmp_path):
    with open_sinks(SinkSettings(tensorboard=True), tmp_path, "run") as sink:
        sink(LINE)
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert all(name.encode() in data for name in FLAT)


class Wandb:
    """The calls of wandb that are documented; the package is not installed here."""

    def __init__(self, told: list[object]) -> None:
        self.told = told

    def init(self, **how: object) -> "Wandb":
        self.told.append(how)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((values, step))

    def finish(self) -> None:
        self.told.append("end")


class Mlflow:
    """The calls of mlflow that are documented; the package is not installed here."""

    def __init__(self, told: list[object]) -> None:
        self.told, self.info = told, SimpleNamespace(run_id="")

    def set_tracking_uri(self, uri: str) -> None:
        self.told.append(uri)

    def set_experiment(self, name: str) -> None:
        self.told.append(name)

    def start_run(self, run_name: str | None = None, run_id: str | None = None) -> "Mlflow":
        self.told.append({"run_name": run_name, "run_id": run_id})
        self.info.run_id = run_id or f"run of {run_name}"
        return self

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.told.append((values, step))

    def __enter__(self) -> "Mlflow":
        return self

    def __exit__(self, *error: object) -> None:
        self.told.append("end")


def test_wandb_and_mlflow_get_each_line_under_the_stages_name(tmp_path, monkeypatch):
    asked, told = [], []
    monkeypatch.setitem(sys.modules, "wandb", Wandb(asked))
    monkeypatch.setitem(sys.modules, "mlflow", Mlflow(told))
    folder = tmp_path / "stage1-0123"
    with open_sinks(SinkSettings(wandb="harmon", mlflow="http://127.0.0.1:5"), folder, "demo") as sink:
        sink(LINE)
    assert asked[0]["project"] == "harmon" and asked[0]["id"] == "stage1-0123" and asked[0]["resume"] == "allow"
    assert told[:2] == ["http://127.0.0.1:5", "demo"] and told[2]["run_name"] == "stage1-0123"
    assert asked[1:] == told[3:] == [(FLAT, 20), "end"]


def test_a_resume_goes_on_in_the_stages_mlflow_run(tmp_path, monkeypatch):
    told: list[object] = []
    monkeypatch.setitem(sys.modules, "mlflow", Mlflow(told))
    for uri in ("http://127.0.0.1:5", "http://127.0.0.1:5", "http://127.0.0.1:6"):
        with open_sinks(SinkSettings(mlflow=uri), tmp_path / "stage1-0123", "demo") as sink:
            sink(LINE)
    begun = [one for one in told if isinstance(one, dict) and "run_id" in one]
    assert [one["run_id"] for one in begun] == [None, "run of stage1-0123", None]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_sink_ends_neither_the_others_nor_the_training(tmp_path, monkeypatch, caplog, where):
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no way to the server")

    told: list[object] = []
    failing = Wandb([])
    monkeypatch.setattr(failing, where, fail)
    monkeypatch.setitem(sys.modules, "wandb", failing)
    monkeypatch.setitem(sys.modules, "mlflow", Mlflow(told))
    settings = SinkSettings(tensorboard=True, wandb="harmon", mlflow="http://127.0.0.1:5")
    with caplog.at_level("WARNING"), open_sinks(settings, tmp_path, "demo") as sink:
        sink(LINE)
        sink(LINE | {"step": 21})
    assert [one for one in told if isinstance(one, tuple)] == [(FLAT, 20), (FLAT, 21)] and told[-1] == "end"
    assert [record.message for record in caplog.records] == ["Weights & Biases takes no metrics: no way to the server"]


def test_nobody_waits_for_a_server_that_does_not_answer(tmp_path, monkeypatch, caplog):
    answers, told = Event(), []
    hanging = Wandb([])
    monkeypatch.setattr(hanging, "log", lambda *_, **__: answers.wait())
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(sinks, "WAITING_LINES", 2)
    monkeypatch.setitem(sys.modules, "wandb", hanging)
    monkeypatch.setitem(sys.modules, "mlflow", Mlflow(told))
    begun = time.monotonic()
    with (
        caplog.at_level("WARNING"),
        open_sinks(SinkSettings(wandb="h", mlflow="http://127.0.0.1:5"), tmp_path, "d") as sink,
    ):
        for step in range(20, 26):
            sink(LINE | {"step": step})
            while not told or told[-1] != (FLAT, step):  # another sink takes the line meanwhile
                assert time.monotonic() - begun < 60
                time.sleep(0.01)
    assert told[-1] == "end"
    answers.set()
    assert [record.message for record in caplog.records] == [
        "Weights & Biases lags 2 lines behind and takes no more of them",
        "Weights & Biases has not taken the last metrics within 0.5 s",
    ]


def test_a_server_that_answers_late_still_gets_every_line(tmp_path, monkeypatch):
    told: list[object] = []
    slow = Wandb(told)
    log = slow.log
    monkeypatch.setattr(slow, "log", lambda values, step: (time.sleep(0.05), log(values, step)))
    monkeypatch.setitem(sys.modules, "wandb", slow)
    with open_sinks(SinkSettings(wandb="harmon"), tmp_path, "demo") as sink:
        for step in range(1, 9):
            sink(LINE | {"step": step})
    assert told[1:] == [*[(FLAT, step) for step in range(1, 9)], "end"]


def test_speed_is_of_steps_that_the_device_has_done(tmp_path, monkeypatch):
    """The host asks for steps long before they are done: the clock is read when their losses have come."""
    now = [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])

    class Late(torch.Tensor):
        def tolist(self):
            now[0] += 10.0
            return super().tolist()

        def __iter__(self):
            now[0] += 10.0
            return super().__iter__()

    job = make_job(tmp_path, small_stage())
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    measured = Meter(data, torch.device("cpu"))
    measured._sums = measured._sums.as_subclass(Late)
    measured.end_step(torch.zeros(()))
    line = measured.line(1, {}, torch.ones(()), [])
    assert line["samples_per_second"] == pytest.approx(job.stage.global_batch / 10.0)


def test_an_absent_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(ConfigurationError, match="needs the package wandb: pip install wandb"),
        open_sinks(SinkSettings(wandb="harmon"), tmp_path, "run"),
    ):
        pass


def test_speed_at_the_papers_throughput_is_the_mfu_that_it_implies():
    """204.8 million samples of stage 2 in a third of 4 days on 32 A100 (MODEL: 17.7 % with the autoencoder)."""
    stage, model = load_stage("stage2"), HarmonConfig.preset("harmon-0.5b")
    told = Speed.of(stage, model, Lengths(), 32 * peak_of("NVIDIA A100-SXM4-80GB")).measures(1333.0)
    assert 0.10 < told["mfu"] < 0.177
    assert told["tokens_per_second"] > 1333 * 64
    assert "mfu" not in Speed.of(stage, model, Lengths()).measures(1.0)
    assert peak_of("a CPU") is None


def test_memory_is_told_where_there_is_no_proc_too(monkeypatch):
    assert peak_memory(torch.device("cpu")) > 2**27

    def absent(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    assert peak_memory(torch.device("cpu")) > 0


def test_lengths_are_those_of_the_stages_texts(tmp_path):
    job = make_job(tmp_path, small_stage())
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    lengths = data.lengths(24)
    drawn, seen = data.images(Block("text2image", 0, 24), range(24)), data.chats("image2text", range(24))
    assert lengths.prompt >= drawn.text_mask.sum(1).float().mean().item() - 1  # a dropped caption is shorter
    assert lengths.labelled == round(seen.count / 24)
    chats = [data._chat("text", number, data.rows.row("text", number).text) for number in range(24)]
    assert lengths.text == round(sum(len(chat.ids) for chat in chats) / 24)
