"""Compiled regions compute what the plain model does, at shapes padded to buckets."""

import shutil

import pytest
import torch
from odd_model import VOCABULARY, odd_model

from harmon.model.compiled import compile_regions
from harmon.sampling import generate
from tests.parts import need


@pytest.mark.slow
def test_a_compiled_model_draws_the_same_latents_and_keeps_its_names() -> None:
    need(shutil.which("g++") is not None, "torch.compile needs a C++ compiler: install g++")
    ids = torch.randint(VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids, dtype=torch.bool)
    plain, compiled = odd_model(), odd_model()
    compile_regions(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    drawn = [
        generate(
            model, ids, mask, (4, 4), steps=4, clip_x0=3.0, generator=torch.Generator().manual_seed(1), buckets=wide
        )
        for model, wide in ((plain, False), (compiled, True))
    ]
    assert torch.isfinite(drawn[0]).all()
    torch.testing.assert_close(drawn[1], drawn[0], atol=1e-4, rtol=1e-4)
