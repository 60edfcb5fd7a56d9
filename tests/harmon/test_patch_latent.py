from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from harmon.model.patch_latent import PatchLatent
from pipelines.errors import HarmonError

torch.set_num_threads(1)


def images(count: int = 6, height: int = 12, width: int = 20, seed: int = 0) -> torch.Tensor:
    smooth = torch.rand(count, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(smooth, size=(height, width), mode="bilinear") * 2 - 1


def test_latents_of_the_fitted_images_have_unit_deviation_and_zero_mean() -> None:
    latent = PatchLatent.fit(images(), channels=6, stride=4)
    encoded = latent.encode(images())
    assert encoded.shape == (6, 6, 3, 5)
    assert encoded.std().item() == pytest.approx(1, abs=0.02)
    assert encoded.mean((0, 2, 3)).abs().max() < 1e-5


def test_earlier_channels_carry_more() -> None:
    deviations = PatchLatent.fit(images(), channels=6, stride=4).encode(images()).std((0, 2, 3))
    assert (deviations.diff() <= 1e-4).all()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), seed=st.integers(0, 99))
def test_all_components_reproduce_any_image(rows: int, columns: int, seed: int) -> None:
    latent = PatchLatent.fit(images(count=20), channels=12, stride=2)
    pixels = torch.rand(2, 3, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    torch.testing.assert_close(latent.decode(latent.encode(pixels)), pixels, atol=1e-4, rtol=1e-4)


def test_a_saved_latent_reads_back_equal_and_says_that_it_is_a_stand_in(tmp_path: Path) -> None:
    path = tmp_path / "latent.safetensors"
    latent = PatchLatent.fit(images(), channels=6, stride=4)
    latent.save(path)
    again = PatchLatent.from_file(path)
    assert (again.channels, again.stride) == (6, 4)
    assert torch.equal(again.encode(images()), latent.encode(images()))
    with safe_open(path, "pt") as file:
        assert "stand-in" in file.metadata()["name"]


def test_an_image_that_is_no_multiple_of_the_stride_is_refused() -> None:
    latent = PatchLatent.fit(images(), channels=6, stride=4)
    with pytest.raises(HarmonError, match="10 x 8"):
        latent.encode(torch.zeros(1, 3, 10, 8))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latent.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(HarmonError, match="no patch latent"):
        PatchLatent.from_file(path)
