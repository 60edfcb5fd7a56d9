"""Reconstruction alignment: the picture itself is the prompt, seen as in understanding, and is drawn again."""

import pytest
import torch
from miniature import make_job, mixture, small_stage

from harmon.model.harmon import Harmon
from harmon.text import IMAGE_SLOT, ChatText
from harmon.training.data import StageData
from harmon.training.job import done, training_key
from harmon.training.loop import loss_sum, train
from harmon.training.micro import split
from harmon.training.mixture import Block, Mixture, MixtureSource
from harmon.training.rows import StageRows
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError

torch.set_num_threads(1)
BLOCK = Block("text2image", 0, 24)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    made = make_job(tmp_path_factory.mktemp("run"), small_stage("stage4-reca", steps=2), dtype="float64")
    return made.model_copy(update={"mixture": reconstructing(made.mixture)})


def reconstructing(usual: Mixture) -> Mixture:
    folder = usual.text2image[0].dataset
    return usual.model_copy(update={"text2image": (MixtureSource(dataset=folder, rows="image2text", text="picture"),)})


@pytest.fixture(scope="module")
def batch(job):
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    return data.images(BLOCK, range(24))


@pytest.fixture(scope="module")
def model(job) -> Harmon:
    torch.manual_seed(0)
    model = Harmon(job.model).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # a fresh head is all zeros and would hide the rest
    return model


def test_a_prompt_holds_the_whole_picture_or_is_the_one_without_a_caption(job, batch):
    text = ChatText(job.tokenizer)
    slots = (batch.text_ids == IMAGE_SLOT).sum(1).tolist()
    assert set(slots) == {0, 16 + 4}  # the dropped tenth, and a grid of 4 x 4 with 4 buffers
    for ids, mask, count in zip(batch.text_ids.tolist(), batch.text_mask.tolist(), slots, strict=True):
        real = [one for one, is_real in zip(ids, mask, strict=True) if is_real and one != IMAGE_SLOT]
        assert (real == text.generation_prompt(None)) == (count == 0)


def test_the_slots_hold_the_picture_of_their_own_row_and_the_words_stay(model, batch):
    seen = (batch.text_ids == IMAGE_SLOT).any(1)
    tokens, grid = model.to_tokens(batch.latents.double())
    other = tokens.clone()
    other[5] += 1
    with torch.no_grad():
        ours, theirs = (model._seeing_prompts(batch.text_ids, one, grid) for one in (tokens, other))
    same = torch.isclose(ours, theirs).all(2)
    assert seen[5]
    assert (~same[5]).tolist() == (batch.text_ids[5] == IMAGE_SLOT).tolist()
    assert same[torch.arange(len(tokens)) != 5].all()


def test_the_gradient_goes_back_through_the_picture_in_the_prompt_at_a_tenth(model, batch, job):
    names = ("proj_in.0.weight", "mar.z_proj.weight")
    gradients = []
    for scale in (0.1, None, 0.0):
        model.zero_grad()
        model.config = job.model.model_copy(update={"grad_scale": scale})
        draws = batch.order, batch.masked, batch.timesteps, batch.noise.double()
        model.text_to_image_loss(
            batch.latents.double(), batch.text_ids, batch.text_mask, *draws, pictured=True
        ).total.backward()
        gradients.append(torch.cat([dict(model.named_parameters())[name].grad.flatten() for name in names]))
    model.config = job.model
    scaled, whole, none = gradients
    assert (whole - none).abs().max() > 0
    assert torch.allclose(scaled - none, 0.1 * (whole - none), rtol=1e-6, atol=1e-9 * whole.abs().max().item())


def test_prompts_without_slots_are_read_as_before(model, batch):
    given = batch.latents.double(), batch.text_ids.clamp(min=0), batch.text_mask
    draws = batch.order, batch.masked, batch.timesteps, batch.noise.double()
    plain, seeing = (model.text_to_image_loss(*given, *draws, pictured=one).total for one in (False, True))
    assert seeing.item() == pytest.approx(plain.item(), rel=1e-12)


def test_a_worker_without_a_picture_in_its_prompts_makes_the_same_passes(model, batch):
    """Sharded weights are gathered from all workers in each pass, forward and backward: one pass fewer would hang."""
    passes = []
    handles = [model.mar.encoder_blocks[0].register_forward_hook(lambda *given: passes.append("forward"))]
    handles += [model.mar.encoder_blocks[0].register_full_backward_hook(lambda *given: passes.append("backward"))]
    dropped = (batch.text_ids != IMAGE_SLOT).all(1)
    pieces = split(batch, len(batch.latents))
    made = []
    for place in (dropped.nonzero()[0], (~dropped).nonzero()[0]):
        passes.clear()
        loss_sum(model, pieces[int(place)], torch.float64, torch.device("cpu")).total.backward()
        made.append(list(passes))
    for handle in handles:
        handle.remove()
    assert made[0] == made[1] == ["forward"] * 2 + ["backward"] * 2


def test_the_stage_trains_to_its_end(job, tmp_path):
    folder = train(job.model_copy(update={"runs": str(tmp_path)}))
    assert done(folder, training_key(job))["steps"] == 2


def test_a_batch_of_it_counts_what_its_loss_counts(job, model, batch):
    assert torch.isfinite(loss_sum(model, batch, torch.float64, torch.device("cpu")).total)
    assert batch.count == len(batch.latents) * batch.masked


def test_the_picture_as_a_prompt_serves_drawing_alone(job):
    stage = job.stage
    dataset = Dataset(job.mixture.text2image[0].dataset)
    wrong = mixture(dataset).model_copy(update={"image2text": reconstructing(mixture(dataset)).text2image})
    with pytest.raises(ConfigurationError, match="`text: picture` serves text2image alone"):
        StageRows(stage, wrong, job.latents)
