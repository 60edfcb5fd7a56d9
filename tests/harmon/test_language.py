"""Our forward pass against Transformers' own, on the same weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_model import ODD, odd_model
from torch import Tensor
from torch.nn import functional as F

from harmon.model.language import KeyValues, positions_of, read_causally

WIDTH = ODD.llm.hidden_size
LLM = odd_model().llm.model.requires_grad_(False)


def transformers(x: Tensor, seen: Tensor) -> Tensor:
    return LLM(inputs_embeds=x, attention_mask=seen.long(), position_ids=positions_of(seen)).last_hidden_state


def inputs(rows: int, length: int) -> Tensor:
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(length))


def test_right_padding_needs_no_mask() -> None:
    x, lengths = inputs(3, 9), torch.tensor([9, 4, 6])
    seen = torch.arange(9) < lengths.unsqueeze(1)
    torch.testing.assert_close(read_causally(LLM, x)[seen], transformers(x, seen)[seen], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_positions_that_are_read_come_out_as_when_all_are(padded: bool) -> None:
    x, read = inputs(2, 7), torch.tensor([[6, 0, 3], [2, 5, 5]])
    seen = torch.ones(2, 7, dtype=torch.bool)
    seen[1, :2] = not padded
    expected = transformers(x, seen).gather(1, read.unsqueeze(-1).expand(-1, -1, WIDTH))
    got = read_causally(LLM, x, positions=positions_of(seen), read_BR=read, seen=seen if padded else None)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.integers(1, 4), min_size=1, max_size=5), room=st.integers(1, 12))
def test_a_sequence_read_in_parts_equals_the_whole_whatever_room_there_was(parts: list[int], room: int) -> None:
    x = inputs(2, sum(parts))
    past, done = KeyValues(LLM, 2, room), []
    for part in parts:
        places = torch.arange(past.length, past.length + part)
        done.append(read_causally(LLM, x[:, places], positions=places, past=past))
    torch.testing.assert_close(torch.cat(done, 1), read_causally(LLM, x), atol=1e-5, rtol=1e-4)


def test_one_position_behind_a_past_is_read_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    x, places = inputs(2, 6), torch.arange(6)
    expected, past = read_causally(LLM, x)[:, 5:], KeyValues(LLM, 2, 6)
    read_causally(LLM, x[:, :5], positions=places[:5], past=past)
    masks, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: masks.append(k["attn_mask"]) or attention(*a, **k)
    )
    got = read_causally(LLM, x[:, 5:], positions=places[5:], read_BR=torch.zeros(2, 1, dtype=torch.int64), past=past)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert masks == [None] * len(LLM.layers)


def test_what_the_first_rows_go_on_to_read_leaves_the_past_as_it_is() -> None:
    x, places = inputs(3, 8), torch.arange(8)
    past = KeyValues(LLM, 3, 8)
    read_causally(LLM, x[:, :5], positions=places[:5], past=past)
    for _ in range(2):
        got = read_causally(LLM, x[:2, 5:], positions=places[5:], past=past.first(2))
        torch.testing.assert_close(got, read_causally(LLM, x)[:2, 5:], atol=1e-5, rtol=1e-4)
    assert past.length == 5
