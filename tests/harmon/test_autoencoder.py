from pathlib import Path

import pytest
import torch

from harmon.model.autoencoder import KlAutoencoder, KlConfig
from pipelines.errors import HarmonError

torch.set_num_threads(1)

SMALL = KlConfig(base_channels=32, channel_multipliers=(1, 1, 2, 1, 1), res_blocks=1, latent_channels=4)


def millions(module: torch.nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


def small(seed: int = 0) -> KlAutoencoder:
    torch.manual_seed(seed)
    return KlAutoencoder(SMALL).eval().requires_grad_(False)


def test_the_released_sizes_have_the_released_parameter_counts() -> None:
    with torch.device("meta"):
        autoencoder = KlAutoencoder()
    assert autoencoder.stride == 16
    assert (millions(autoencoder.encoder), millions(autoencoder.decoder), millions(autoencoder)) == (
        28.27,
        38.19,
        66.46,
    )


def test_a_latent_is_the_scaled_mode_of_the_posterior() -> None:
    autoencoder = small()
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = autoencoder.encode(images)
    assert latents.shape == (2, 4, 2, 3)
    torch.testing.assert_close(latents, autoencoder.moments(images)[:, :4] * 0.2325)
    assert autoencoder.decode(latents).shape == images.shape


def test_released_weights_load_from_any_float_type_and_with_other_keys_beside_them() -> None:
    source, target = small(1).to(torch.bfloat16), small(2)
    target.load_released({**source.state_dict(), "loss.logvar": torch.zeros(())})
    assert torch.equal(target.quant_conv.weight, source.quant_conv.weight.float())


def test_a_missing_weight_and_a_wrong_shape_are_refused_by_name() -> None:
    state = small().state_dict()
    del state["decoder.conv_in.weight"]
    with pytest.raises(HarmonError, match=r"decoder\.conv_in\.weight"):
        small().load_released(state)
    with pytest.raises(HarmonError, match=r"quant_conv\.bias"):
        small().load_released({**small().state_dict(), "quant_conv.bias": torch.zeros(3)})


def test_a_saved_autoencoder_reads_back_equal_with_its_sizes(tmp_path: Path) -> None:
    autoencoder = small()
    autoencoder.save(tmp_path / "kl.safetensors")
    again = KlAutoencoder.from_file(tmp_path / "kl.safetensors")
    assert again.config == SMALL
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.encode(images), autoencoder.encode(images))


def test_sides_that_the_stride_does_not_divide_are_refused() -> None:
    with pytest.raises(HarmonError, match="multiples of 16"):
        small().encode(torch.zeros(1, 3, 40, 32))


def test_an_image_of_one_latent_position_goes_there_and_back() -> None:
    autoencoder = KlAutoencoder(KlConfig(base_channels=32, channel_multipliers=(1, 1, 1, 1, 1), res_blocks=1)).eval()
    with torch.no_grad():
        latents = autoencoder.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
        images = autoencoder.decode(latents)
    assert latents.shape == (2, 16, 1, 1) and images.shape == (2, 3, 16, 16)
    assert latents.isfinite().all() and images.isfinite().all()
