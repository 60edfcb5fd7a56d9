"""Training on a miniature corpus: what moves, which samples come, resuming, and several processes."""

import json
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from miniature import make_job, mixture, small_stage, tiny_model
from safetensors.torch import load_file, save_file

from harmon.model.harmon import Harmon, part_of
from harmon.text import ChatText
from harmon.training.checkpoint import MODEL, latest_checkpoint
from harmon.training.data import ChatBatch, ImageBatch, StageData
from harmon.training.eligible import have_pairs
from harmon.training.job import TrainJob, done, training_key
from harmon.training.loop import final_weights, loss_sum, step_counts, train
from harmon.training.mixture import blocks_of_step
from harmon.training.optimiser import make_optimiser, trained_parameters
from harmon.training.rows import pairs_of
from harmon.training.stage import load_stage
from harmon.training.weights import load_weights
from pipelines.columns import CONVERSATIONS, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.steps import Step, StepRun

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainJob:
    return make_job(tmp_path_factory.mktemp("run"), small_stage(steps=6), dtype="float64", checkpoint_every=3)


@pytest.fixture(scope="module")
def undisturbed(job) -> Path:
    return train(job)


def at(job: TrainJob, folder: Path, **changes: object) -> TrainJob:
    return job.model_copy(update={"runs": str(folder), **changes})


def lines(folder: Path) -> list[dict]:
    volatile = ("samples_per_second", "tokens_per_second", "flops_per_second", "data_share", "peak_memory")
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in volatile} for line in parsed]


@pytest.mark.parametrize(
    ("name", "moving"),
    [
        ("stage1", {"encoder", "decoder"}),
        ("stage2", {"encoder", "decoder", "llm"}),
        ("stage3", {"encoder", "decoder", "llm"}),
    ],
)
def test_a_stage_moves_the_parts_of_table_1_and_no_other(job, tmp_path, name, moving):
    stage = small_stage(name, steps=2, warmup_share=0.0)
    folder = train(at(job, tmp_path, stage=stage))
    before, after = Harmon(job.model), Harmon(job.model)
    load_weights(before, [final_weights(folder)])
    torch.manual_seed(0)
    load_weights(after, [final_weights(train(at(job, tmp_path, stage=stage.model_copy(update={"steps": 1}))))])
    own = dict(before.named_parameters())
    moved = {part_of(name) for name, value in after.named_parameters() if not torch.equal(value, own[name])}
    assert moved == moving


def test_rates_and_decay_follow_part_and_kind():
    stage = load_stage("stage3")
    trained = trained_parameters(Harmon(tiny_model()), stage)
    names = {id(parameter): name for name, parameter in trained.items()}
    for group in make_optimiser(stage, trained).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["peak"] == {"encoder": 2e-6, "decoder": 2e-5, "llm": 2e-6}[part_of(name)]
            plain = parameter.ndim > 1 and not name.endswith(".bias") and "diffloss" not in name
            assert group["weight_decay"] == (0.02 if plain else 0)


def test_a_finished_stage_is_not_trained_again(job, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    assert train(job) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before
    record = done(undisturbed, training_key(job))
    assert record["steps"] == job.stage.steps
    assert record["left_out"] == {"text": [0], "image2text": [0, 0], "text2image": [0, 0]}


def test_the_key_says_what_and_not_how(job, tmp_path):
    key = training_key(job)
    assert training_key(at(job, tmp_path, log_every=7, checkpoint_every=2)) == key
    assert training_key(at(job, tmp_path, stage=small_stage(seed=1))) != key
    assert training_key(at(job, tmp_path, previous="0" * 64)) != key


def test_epochs_of_an_entry_are_part_of_the_key_where_they_are_stated(job):
    def of(**how: object) -> str:
        entry = job.mixture.text[0].model_copy(update=how)
        return training_key(job.model_copy(update={"mixture": job.mixture.model_copy(update={"text": (entry,)})}))

    assert of(epochs=None) == training_key(job) != of(epochs=2.0)
    assert all("epochs" not in entry for entries in job.contents()["mixture"].values() for entry in entries)


def test_resuming_after_a_kill_equals_an_undisturbed_run(job, undisturbed, tmp_path):
    context = mp.get_context("spawn")
    process = context.Process(target=_train_until_killed, args=(at(job, tmp_path).model_dump_json(), 5))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = tmp_path / undisturbed.name
    assert latest_checkpoint(folder / "checkpoints").name == "000003"
    assert not (folder / "done.json").exists()
    (folder / "checkpoints" / ".writing-000006-1").mkdir()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train(at(job, tmp_path))
    assert lines(folder) == lines(undisturbed)
    assert final_weights(folder).read_bytes() == final_weights(undisturbed).read_bytes()
    assert not list((folder / "checkpoints").glob(".writing-*"))


def _train_until_killed(job: str, step: int) -> None:
    torch.set_num_threads(1)

    def report(line: dict) -> None:
        if line["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(TrainJob.model_validate_json(job), report=report)


def test_two_gloo_processes_train_as_one_does(job, undisturbed, tmp_path):
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    mp.start_processes(
        _train_as, args=(2, rendezvous, at(job, tmp_path).model_dump_json()), nprocs=2, start_method="spawn"
    )
    for ours, theirs in zip(lines(tmp_path / undisturbed.name), lines(undisturbed), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-9)
        assert ours["samples"] == theirs["samples"] and ours["masked"] == theirs["masked"]


def _train_as(rank: int, world: int, rendezvous: str, job: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    train(TrainJob.model_validate_json(job))
    dist.destroy_process_group()


def test_samples_and_draws_are_equal_at_any_world_size(job):
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    for step in range(6):
        for block in blocks_of_step(job.stage, step):
            whole = data.batch(block, 0, 1)
            for world in (2, 4, 8):
                parts = [data.batch(block, rank, world) for rank in range(world)]
                _same(whole, [part for part in parts if part is not None])


def _same(whole: ImageBatch | ChatBatch, parts: list[ImageBatch | ChatBatch]) -> None:
    assert sum(part.count for part in parts) == whole.count
    row = 0
    for part in parts:
        rows = slice(row, row + len(part.latents if part.latents is not None else part.input_ids))
        row = rows.stop
        if whole.latents is not None:
            assert torch.equal(part.latents, whole.latents[rows])
        if isinstance(whole, ImageBatch):
            assert part.masked == whole.masked
            assert torch.equal(part.order, whole.order[rows])
            assert torch.equal(part.noise, whole.noise[:, rows])
            assert torch.equal(part.timesteps, whole.timesteps[:, rows])
            assert torch.equal(part.text_ids, whole.text_ids[rows, : part.text_ids.shape[1]])
        else:
            assert torch.equal(part.input_ids, whole.input_ids[rows, : part.input_ids.shape[1]])
            assert torch.equal(part.labels, whole.labels[rows, : part.labels.shape[1]])


def test_gradients_of_workers_add_up_to_the_whole_one(job):
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    torch.manual_seed(0)
    model = Harmon(job.model).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # a fresh head is all zeros and would hide the rest
    for block in blocks_of_step(job.stage, 1)[:3]:
        gradients = []
        for world in (1, 3):
            model.zero_grad()
            for rank in range(world):
                batch = data.batch(block, rank, world)
                loss_sum(model, batch, torch.float64, torch.device("cpu")).total.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12 * gradients[0].abs().max().item())


def test_a_batch_counts_what_its_loss_counts(job):
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    model = Harmon(job.model)
    for block in blocks_of_step(job.stage, 1):
        batch = data.batch(block, 0, 1)
        assert torch.isfinite(loss_sum(model, batch, torch.float32, torch.device("cpu")).total)
        if isinstance(batch, ChatBatch):
            loss = model.image_to_text_loss(batch.latents, batch.input_ids, batch.labels)
            assert loss.count.item() == batch.count


TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", None]), "text": st.sampled_from(["words", "", None])}
)


@given(st.lists(st.none() | st.lists(st.none() | TURNS, max_size=5), max_size=8), st.integers(0, 8))
def test_conversations_with_pairs_are_those_that_give_a_chat_pairs(conversations, cut):
    chunks = [pa.array(part, CONVERSATIONS) for part in (conversations[:cut], conversations[cut:])]
    found = [one for chunk in chunks for one in have_pairs(chunk).to_pylist()]
    assert found == [bool(conversation and pairs_of(conversation)) for conversation in conversations]
    assert all(question and answer for row in conversations if row for question, answer in pairs_of(row))


def test_conversations_without_a_usable_pair_are_left_out_and_counted(job, tmp_path):
    def turns(*texts: str | None, roles: tuple[str, ...] = ("user", "assistant")) -> list[dict]:
        return [{"role": roles[place % len(roles)], "text": text} for place, text in enumerate(texts)]

    rows = [None, [], turns("alone"), turns("", "answer"), turns("question", None), turns("a", "b", roles=("user",))]
    good = [turns("question", "answer"), turns("question", None, "again", "answer")]
    dataset = Dataset(tmp_path / "talk")
    run = StepRun(dataset, Step("make-talk", 1, {}, ()))
    for shard in run.pending(range(1)):
        records = [
            dict.fromkeys(SOURCE_SCHEMA.names) | {"key": f"{row:032x}", "source": "talk", "task": "text"} | {
                "row_id": str(row), "conversations": talk,
            }
            for row, talk in enumerate(rows + good)
        ]  # fmt: skip
        output = run.shard(shard)
        output.columns("source", pa.Table.from_pylist(records, schema=SOURCE_SCHEMA))
        output.finish(rows_in=len(records))
    run.commit()
    stage = small_stage(ratio={"text": 1, "image2text": 0, "text2image": 0})
    data = StageData(stage, mixture(dataset), job.model, ChatText(job.tokenizer), job.latents)
    assert data.left_out == {"text": [len(rows)]}
    assert all(data.chats("text", range(number, number + 1)).count for number in range(8))


def test_counts_are_summed_over_workers_on_the_training_device(job, monkeypatch):
    """NCCL takes no CPU tensor; the meta device stands for the GPU."""
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    blocks = blocks_of_step(job.stage, 0)
    summed: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", summed.append)
    step_counts(blocks, [data.batch(block, 0, 1) for block in blocks], torch.device("meta"))
    assert [(tensor.device.type, tensor.dtype) for tensor in summed] == [("meta", torch.float64)]


def test_a_stage_starts_from_the_weights_of_the_one_before(job, undisturbed, tmp_path):
    stage = small_stage("stage3", steps=1, learning_rate={"encoder": 1e-12, "decoder": 1e-12, "llm": 1e-12})
    folder = train(
        at(job, tmp_path, stage=stage, weights=(str(final_weights(undisturbed)),), previous=training_key(job))
    )
    first, second = Harmon(job.model).double(), Harmon(job.model).double()
    load_weights(first, [final_weights(undisturbed)])
    load_weights(second, [final_weights(folder)])
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_parts_load_under_their_own_names_and_connectors_start_fresh(job, undisturbed, tmp_path):
    tensors = load_file(final_weights(undisturbed))
    for part in ("llm", "mar"):
        own = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        save_file(own, tmp_path / f"{part}.safetensors")
    model = Harmon(job.model).double()
    fresh = model.proj_in[0].weight.detach().clone()
    load_weights(model, [tmp_path / "llm.safetensors", tmp_path / "mar.safetensors"])
    assert torch.equal(model.mar.mask_token, tensors["mar.mask_token"])
    assert torch.equal(model.llm.model.norm.weight, tensors["llm.model.norm.weight"])
    assert torch.equal(model.proj_in[0].weight, fresh)


def test_weights_that_do_not_fit_are_refused(job, undisturbed, tmp_path):
    tensors = load_file(final_weights(undisturbed))
    tensors.pop("mar.mask_token")
    save_file(tensors, tmp_path / MODEL)
    with pytest.raises(HarmonError, match=r"misses \['mar.mask_token'\]"):
        load_weights(Harmon(job.model), [tmp_path / MODEL])
