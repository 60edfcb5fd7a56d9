"""Other encoders than MAR's see pictures that are asked about (paper, Table 6): SigLIP, VAE and VQGAN; drawing stays
as it is.
"""

import json
from pathlib import Path

import pytest
import torch
from miniature import TOKENIZER, make_job, mixture, small_stage, tiny_model
from PIL import Image
from torch import Tensor

from harmon.ask import answer_questions
from harmon.convert.folder import write_folder
from harmon.evaluation.encoders import DEMO, vqgan_encoder
from harmon.latents import latents_group, load_picture_encoder, write_latents
from harmon.model.config import HarmonConfig, UnderstandingEncoder
from harmon.model.harmon import Harmon
from harmon.model.vqgan import Vqgan, VqganConfig
from harmon.parts.fidelity import pixels
from harmon.seeing import main, read_vqgan
from harmon.text import IGNORED, IMAGE_SLOT
from harmon.tower import Tower, _normalisation_of
from harmon.trained import RunDescription, TrainedStage, describe_run, load, open_checkpoint
from harmon.training.blank import blank_batch
from harmon.training.checkpoint import MODEL
from harmon.training.job import stage_folder, training_key
from harmon.training.loop import final_weights, train
from harmon.training.parameters import parameter_counts
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.scenes import make_scene

SMALL = VqganConfig(
    base_channels=32, channel_multipliers=(1, 1, 1, 1, 1), res_blocks=1, encoder_channels=12, code_width=8, codes=40
)
LAYOUT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
}
SEEN: dict[UnderstandingEncoder, dict[str, int]] = {
    "siglip": {"understanding_channels": 32, "understanding_grid": 3},
    "vae": {},
    "vqgan": {"understanding_channels": 8},
}


def config(encoder: UnderstandingEncoder) -> HarmonConfig:
    return HarmonConfig.model_validate(tiny_model().model_dump() | {"understanding_encoder": encoder} | SEEN[encoder])


def small_vqgan(path: Path) -> Path:
    torch.manual_seed(0)
    Vqgan(SMALL).save(path)
    return path


def small_tower(path: Path) -> Path:
    layout = path.with_name("small-tower.json")
    layout.write_text(json.dumps(LAYOUT))
    Tower.named(str(layout), None).save(path)
    return path


def images(count: int = 2, px: int = 64) -> Tensor:
    return torch.rand(count, 3, px, px, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_a_model_that_shares_its_encoder_is_written_as_before() -> None:
    shared = tiny_model()
    assert list(shared.model_dump()) == list(json.loads(shared.model_dump_json())) == [
        "llm", "mar", "head", "latent_stride", "grad_scale"
    ]  # fmt: skip
    assert not [name for name in Harmon(shared).state_dict() if "understanding" in name]
    for encoder in SEEN:
        assert HarmonConfig.model_validate_json(config(encoder).model_dump_json()) == config(encoder)


@pytest.mark.parametrize(
    "said",
    [
        {"understanding_encoder": "siglip"},
        {"understanding_encoder": "vae", "understanding_channels": 16},
        {"understanding_channels": 8},
        {"understanding_encoder": "vqgan", "understanding_channels": 8, "understanding_grid": 4},
    ],
)
def test_sizes_that_no_encoder_has_are_refused(said: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="understanding_"):
        HarmonConfig.model_validate(tiny_model().model_dump() | said)


@pytest.mark.parametrize("encoder", SEEN)
def test_questions_train_the_connector_and_drawing_does_not(encoder: UnderstandingEncoder) -> None:
    torch.manual_seed(1)
    sizes = config(encoder)
    model = Harmon(sizes)
    slots = sizes.slots(4, 4)
    assert slots == (9 if encoder == "siglip" else 16)
    seen = torch.randn(2, sizes.understanding_channels or 16, *[sizes.understanding_grid or 4] * 2)
    assert model.picture_embeddings(seen).shape == (2, slots, 32)
    assert sum(parameter_counts(sizes).values()) == sum(one.numel() for one in model.parameters())
    ids = torch.tensor([[IMAGE_SLOT] * slots + [5, 6]] * 2)
    labels = torch.tensor([[IGNORED] * (slots + 1) + [6]] * 2)
    model.image_to_text_loss(seen, ids, labels).total.backward()
    moved = {name.split(".")[0] for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}
    assert moved == {"llm", "proj_understanding"}

    model.zero_grad(set_to_none=True)
    order, text = torch.arange(16).expand(2, -1), torch.ones(2, 3, dtype=torch.int64)
    steps = torch.zeros(2, 2, 16, dtype=torch.int64)
    noise = torch.randn(2, 2, 16, 16)
    model.text_to_image_loss(torch.randn(2, 16, 4, 4), text, text, order, 12, steps, noise).total.backward()
    moved = {name.split(".")[0] for name, one in model.named_parameters() if one.grad is not None}
    assert moved == {"llm", "mar", "proj_in", "proj_out"}


def test_vqgan_gives_the_nearest_vector_of_its_code() -> None:
    torch.manual_seed(2)
    model = Vqgan(SMALL).eval()
    found = model.encode(images())
    table = model.quantize.embedding.weight
    with torch.no_grad():
        read = model.quant_conv(model.encoder(images()))
    for row in range(2):
        for y in range(4):
            for x in range(4):
                nearest = (table - read[row, :, y, x]).square().sum(1).argmin()
                assert torch.equal(found[row, :, y, x], table[nearest])
    with pytest.raises(HarmonError, match="multiples of 16"):
        model.encode(torch.zeros(1, 3, 40, 64))


def test_the_published_vqgan_has_these_shapes() -> None:
    """taming-transformers' vqgan_imagenet_f16_16384, from its configuration."""
    with torch.device("meta"):
        model = Vqgan()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["quantize.embedding.weight"] == (16384, 256)
    assert shapes["encoder.conv_out.weight"] == (256, 512, 3, 3)
    assert shapes["quant_conv.weight"] == (256, 256, 1, 1)
    assert shapes["encoder.down.4.attn.1.q.weight"] == (512, 512, 1, 1)
    assert not [name for name in shapes if name.startswith("encoder.down.3.attn")]
    assert (model.stride, model.channels, model.side(256)) == (16, 256, 16)


def test_a_checkpoint_under_the_published_names_loads_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(3)
    own = Vqgan(SMALL).state_dict()
    others = {"decoder.conv_in.weight": torch.zeros(2), "loss.discriminator.main.0.bias": torch.zeros(3)}
    torch.save({"state_dict": own | others, "global_step": 7}, tmp_path / "last.ckpt")
    main(["vqgan", str(tmp_path / "last.ckpt"), str(tmp_path / "vqgan.safetensors")])
    again = load_picture_encoder(tmp_path / "vqgan.safetensors")
    assert isinstance(again, Vqgan)
    assert again.config == SMALL
    assert all(torch.equal(value, own[name]) for name, value in again.state_dict().items())
    assert vqgan_encoder(tmp_path / "vqgan.safetensors", 64).maps(images()).shape == (2, 8, 4, 4)

    torch.save({"state_dict": {name: one for name, one in own.items() if "mid" not in name}}, tmp_path / "cut.ckpt")
    with pytest.raises(HarmonError, match=r"encoder\.mid"):
        read_vqgan(tmp_path / "cut.ckpt")
    torch.save({"model": own}, tmp_path / "other.ckpt")
    with pytest.raises(HarmonError, match="state_dict"):
        read_vqgan(tmp_path / "other.ckpt")


def test_a_tower_comes_back_from_its_file_and_sees_any_size_at_its_own(tmp_path: Path) -> None:
    file = small_tower(tmp_path / "tower.safetensors")
    first, again = load_picture_encoder(file), Tower.from_file(file)
    assert isinstance(first, Tower)
    assert again.name == "small-tower, random"
    assert (first.channels, first.side(64), first.side(512)) == (32, 3, 3)
    assert torch.equal(first.encode(images(px=48)), again.encode(images(px=48)))
    assert first.encode(images(px=128)).shape == (2, 32, 3, 3)
    with pytest.raises(HarmonError, match="no tower"):
        Tower.from_file(small_vqgan(tmp_path / "vqgan.safetensors"))


def test_a_siglip_sees_pixels_as_its_published_weights_do() -> None:
    """open_clip gives weights of a file CLIP's normalisation, whatever the network."""
    assert _normalisation_of("ViT-B-16-SigLIP-256") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert _normalisation_of("ViT-L-14")[0][0] == pytest.approx(0.4815, abs=1e-4)
    assert _normalisation_of("a network of nobody's") == _normalisation_of("ViT-L-14")


@pytest.mark.parametrize("encoder", ["siglip", "vqgan"])
def test_a_stage_trains_on_stored_maps_and_its_run_answers(encoder: UnderstandingEncoder, tmp_path: Path) -> None:
    file = (small_tower if encoder == "siglip" else small_vqgan)(tmp_path / "seeing.safetensors")
    stage = small_stage(steps=2)
    job = make_job(tmp_path, stage)
    plain = training_key(job)
    dataset = Dataset(tmp_path / "corpus")
    write_latents(dataset, 64, file)
    told = {"model": config(encoder), "mixture": mixture(dataset), "understanding": latents_group(64, file)}
    job = job.model_copy(update=told)
    assert "understanding" in job.contents() and "understanding" not in make_contents(job)
    key = training_key(job)
    assert key != plain
    folder = train(job)
    batch = blank_batch(stage, job.model, job.mixture, "image2text")
    assert (batch.input_ids == IMAGE_SLOT).sum() == job.model.slots(4, 4)

    run = tmp_path / "run"
    checkpoint = run / "train" / stage_folder(job, key).name / "checkpoints" / "000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / MODEL).write_bytes(final_weights(folder).read_bytes())
    described = RunDescription(model=job.model, stages=(TrainedStage(folder=stage_folder(job, key).name, px=64),))
    describe_run(run, described, TOKENIZER, tmp_path / "patch_latent.safetensors", file)
    trained = load(run)
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    assert len(answer_questions(trained, [red, blue], ["What colour?"] * 2)) == 2
    seen = trained.seen(torch.stack([torch.full((3, 64, 64), value) for value in (-1.0, 1.0)]))
    assert torch.equal(
        seen, load_picture_encoder(file).eval().encode(torch.stack([torch.full((3, 64, 64), v) for v in (-1.0, 1.0)]))
    )
    with pytest.raises(ConfigurationError, match=f"sees with {encoder}"):
        write_folder(open_checkpoint(run), tmp_path / "hf")


def make_contents(job: object) -> dict[str, object]:
    """The key's contents of the same job without another encoder."""
    plain = job.model_copy(update={"model": tiny_model(), "understanding": None})  # type: ignore[attr-defined]
    contents: dict[str, object] = plain.contents()
    return contents


def test_maps_of_another_encoder_than_the_models_are_refused(tmp_path: Path) -> None:
    file = small_vqgan(tmp_path / "vqgan.safetensors")
    job = make_job(tmp_path, small_stage(steps=1))
    write_latents(Dataset(tmp_path / "corpus"), 64, file)
    wrong = {"model": config("siglip"), "understanding": latents_group(64, file)}
    with pytest.raises(HarmonError, match="name the encoder that the model was made for"):
        train(job.model_copy(update=wrong))


def test_the_demos_stand_ins_say_that_they_are() -> None:
    tower, vqgan = (load_picture_encoder(DEMO / f"{name}.safetensors") for name in ("siglip", "vqgan"))
    assert isinstance(tower, Tower) and isinstance(vqgan, Vqgan)
    assert "stand-in" in tower.name and "random" in tower.name and "stand-in" in vqgan.name
    assert tower.encode(images()).shape == (2, 128, 4, 4)
    assert vqgan.eval().encode(images()).shape == (2, 16, 4, 4)
    assert len(vqgan.codes(pixels([make_scene(1, index) for index in range(16)], 64)).unique()) > 20
