"""Chats packed into one row without padding: losses and gradients are those of padded rows, and none sees another."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from miniature import make_job, small_stage
from odd_model import ODD, VOCABULARY, odd_model
from test_sharded import on_workers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from harmon.model import packing
from harmon.model.harmon import Harmon
from harmon.model.language import norm, read_causally
from harmon.model.packing import Segments, attend_within, pack
from harmon.text import IGNORED, IMAGE_SLOT, ChatText
from harmon.training.buckets import alike, balanced
from harmon.training.data import ChatBatch, StageData
from harmon.training.execution import Execution
from harmon.training.job import TrainJob
from harmon.training.loop import train
from harmon.training.micro import split, split_by_length
from harmon.training.mixture import Block

torch.set_num_threads(1)
GRID, EXACT = 2, {"atol": 1e-12, "rtol": 1e-9}
SLOTS = GRID**2 + ODD.mar.buffer_size
DOUBLE = odd_model().double()


@pytest.fixture
def model() -> Harmon:
    return DOUBLE


def chats(texts: list[tuple[int, int]], pictured: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Latents, ids and labels of chats of so many question and answer tokens; the second half of an answer may be a
    second turn, whose first token is not labelled.
    """
    draw = torch.Generator().manual_seed(len(texts))
    longest = max(1 + SLOTS * pictured + asked + told for asked, told in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for row, (asked, told) in enumerate(texts):
        start = 1 + SLOTS * pictured + asked
        ids[row, : start + told] = torch.randint(VOCABULARY, (start + told,), generator=draw)
        ids[row, 1 : 1 + SLOTS * pictured] = IMAGE_SLOT
        labels[row, start : start + told] = ids[row, start : start + told]
        if told > 3:
            labels[row, start + told // 2] = IGNORED
    shape = (len(texts), ODD.mar.latent_channels, GRID, GRID)
    return torch.randn(shape, generator=draw, dtype=torch.float64) if pictured else None, ids, labels


def loss_and_gradients(model: Harmon, *given: Tensor | None, **how: object) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model.image_to_text_loss(*given, **how)
    loss.total.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return loss.per_sample, loss.count, gradients


@pytest.mark.parametrize("pictured", [False, True], ids=["text", "image2text"])
def test_losses_and_gradients_of_packed_rows_are_those_of_padded_ones(model, pictured):
    given = chats([(3, 9), (0, 1), (5, 0), (1, 14), (2, 2)], pictured)  # one without anything to learn
    how = {"weight": torch.tensor([1.0, 0.5, 1.0, 2.0, 1.0])}
    *ours, gradients = loss_and_gradients(model, *given, **how, packed=True)
    *theirs, expected = loss_and_gradients(model, *given, **how)
    assert ours[0][2] == 0 and gradients.keys() == expected.keys()
    for one, other in zip([*ours, *gradients.values()], [*theirs, *expected.values()], strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=6))
def test_a_packed_chat_learns_what_it_would_alone(texts: list[tuple[int, int]]):
    model = DOUBLE
    _, ids, labels = chats(texts, pictured=False)
    together = model.image_to_text_loss(None, ids, labels, packed=True).per_sample
    alone = [model.image_to_text_loss(None, ids[row, None], labels[row, None]).per_sample for row in range(len(ids))]
    torch.testing.assert_close(together, torch.cat(alone), **EXACT)


@pytest.mark.parametrize("chosen", [False, True], ids=["every place", "some places"])
def test_packed_texts_are_read_as_transformers_reads_each(model, chosen, monkeypatch):
    llm, lengths = model.llm.model, (4, 1, 7)
    monkeypatch.setattr(type(llm.norm), "forward", norm)  # Transformers' own rounds to float32
    x = torch.randn(1, sum(lengths), ODD.llm.hidden_size, dtype=torch.float64)
    texts = [llm(inputs_embeds=text).last_hidden_state for text in x.split(lengths, 1)]
    expected = torch.cat(texts, 1)
    read = torch.tensor([[0, 3, 4, 9]]) if chosen else None
    got = read_causally(llm, x, segments=Segments.of(lengths), read_BR=read)
    torch.testing.assert_close(got, expected[:, read[0]] if chosen else expected, **EXACT)


def test_nothing_is_read_behind_the_place_that_predicts_the_last_label():
    _, ids, labels = chats([(3, 9), (0, 1), (5, 0)], pictured=True)
    assert pack(ids, labels).lengths == (SLOTS + 3 + 9, SLOTS + 1, 1 + SLOTS)
    assert pack(ids, labels).real_BL.shape == ids.shape


def heads(lengths: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of six heads, keys and values of two, of width 8."""
    total = sum(lengths)
    return tuple(torch.randn(1, some, total, 8, dtype=dtype, requires_grad=True) for some in (6, 2, 2))


def test_the_fused_kernel_is_asked_for_causal_attention_in_each_text_and_for_no_mask(monkeypatch):
    """No GPU here: what torch documents of its kernel stands in for it, and torch's own description checks shapes."""
    lengths = (3, 1, 5)
    given, segments = heads(lengths, torch.float64), Segments.of(lengths)

    def documented(q, k, v, ends_q, ends_k, longest_q, longest_k, *, window_size, enable_gqa):
        assert window_size == (-1, 0) and enable_gqa and ends_q.dtype == torch.int32
        assert longest_q == longest_k == max(lengths) and torch.equal(ends_q, ends_k)
        k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], 1) for one in (k, v))
        out = torch.zeros_like(q)
        for start, end in zip(ends_q[:-1].tolist(), ends_q[1:].tolist(), strict=True):
            scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) / q.shape[-1] ** 0.5
            hidden = torch.ones(end - start, end - start).triu(1).bool()
            out[start:end] = torch.einsum(
                "hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v[start:end]
            )
        return out

    with monkeypatch.context() as patched:
        patched.setattr(varlen, "varlen_attn", documented)
        torch.testing.assert_close(packing._fused(*given, segments), attend_within(*given, segments), **EXACT)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = heads(lengths, torch.bfloat16)
        out = packing._fused(*fake, segments)
        out.sum().backward()
        assert out.shape == fake[0].shape and out.dtype == torch.bfloat16
        assert [one.grad.shape for one in fake] == [one.shape for one in fake]


def test_sixteen_bits_are_found_with_and_without_autocast():
    x = torch.zeros(1)
    assert packing._small(x) is None and packing._small(x.bfloat16()) == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert packing._small(x) == torch.bfloat16


# -- which rows share a micro-batch --------------------------------------------------------------------------


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 8), st.sampled_from([alike, balanced]))
def test_every_row_comes_once_and_groups_are_equal_within_one(lengths: list[int], parts: int, group):
    parts = min(parts, len(lengths))
    groups = group(lengths, parts)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    assert {len(rows) for rows in groups} <= {len(lengths) // parts, -(-len(lengths) // parts)}


def test_like_lengths_come_together_and_long_chats_apart():
    lengths = [10, 90, 11, 92, 12, 95, 13, 99]
    assert [sorted(lengths[row] for row in rows) for rows in alike(lengths, 2)] == [[10, 11, 12, 13], [90, 92, 95, 99]]
    tokens = [sum(lengths[row] for row in rows) for rows in balanced(lengths, 4)]
    assert max(tokens) - min(tokens) < 10


# -- a stage that is trained so ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainJob:
    folder = tmp_path_factory.mktemp("run")
    return make_job(folder, small_stage(steps=4, block_rows=8), dtype="float64", checkpoint_every=4)


@pytest.fixture(scope="module")
def plain(job) -> Path:
    return train(job)


def at(job: TrainJob, folder: Path, **how: object) -> TrainJob:
    return job.model_copy(update={"runs": str(folder), "execution": Execution(pack=True, **how)})


def same_losses(ours: Path, theirs: Path) -> None:
    assert ours.name == theirs.name  # how it runs is no part of what it is
    lines = [[json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()] for one in (ours, theirs)]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-9)


@pytest.mark.parametrize("how", [{}, {"micro_rows": 3}, {"micro_rows": 3, "recompute": "selective"}], ids=str)
def test_a_packed_stage_has_the_losses_of_a_padded_one(job, plain, tmp_path, how):
    same_losses(train(at(job, tmp_path, **how)), plain)


@pytest.mark.slow
def test_a_packed_stage_on_sharded_weights_has_the_losses_of_a_padded_one(job, plain, tmp_path):
    on_workers(2, tmp_path, at(job, tmp_path, parallel="fsdp", micro_rows=2))
    same_losses(next(path for path in tmp_path.iterdir() if path.is_dir()), plain)


def test_micro_batches_by_length_hold_all_rows_and_compute_less(job):
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    images = data.images(Block("text2image", 0, 8), range(8))
    sorted_parts, in_order = split_by_length(images, 4), split(images, 4)
    assert sum(part.text_ids.numel() for part in sorted_parts) < sum(part.text_ids.numel() for part in in_order)
    assert all(part.text_mask.any(0).all() for part in sorted_parts)
    assert sum(part.count for part in sorted_parts) == images.count
    for task in ("text", "image2text"):
        batch = data.chats(task, range(8))
        parts: list[ChatBatch] = split_by_length(batch, 3)
        assert sum(part.count for part in parts) == batch.count
        tokens = [sum(pack(part.input_ids, part.labels).lengths) for part in parts]
        assert sum(tokens) == sum(pack(batch.input_ids, batch.labels).lengths)
