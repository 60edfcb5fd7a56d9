"""No train step waits for its device.

The device is torch's `meta`: a tensor there has no values, so whatever would have to wait for one fails by itself
(item, a copy back). The rest that the host would wait for is refused here.
"""

from contextlib import nullcontext

import pytest
import torch
from miniature import make_job, small_stage
from torch.utils._python_dispatch import TorchDispatchMode

from harmon.model.harmon import Harmon
from harmon.training import loop
from harmon.training.data import ChatBatch
from harmon.training.decoding import Online
from harmon.training.execution import Execution, GuardConfig
from harmon.training.mixture import MixtureSource

torch.set_num_threads(1)
META, CPU = torch.device("meta"), torch.device("cpu")


class _Stepped(Exception):
    """The steps under watch are over."""


ATEN = torch.ops.aten
COUNTS = (ATEN.masked_select, ATEN.masked_scatter_backward, ATEN.nonzero, ATEN._unique2, ATEN._local_scalar_dense)
INDEXES = (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_)


class NoWaiting(TorchDispatchMode):
    """Refuses what the host would wait for: copies from the CPU to the device that may not run behind, and results
    whose size the device must count, not all of which fail on `meta` by themselves.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = kwargs or {}, func.overloadpacket
        there = [one for one in args if isinstance(one, torch.Tensor) and one.device == META]
        assert not (there and op in COUNTS), f"{func} waits for the device"
        if there and op in INDEXES:
            assert all(one is None or one.dtype is not torch.bool for one in args[1]), f"{func} counts a mask"
            assert all(one is None or one.device == META for one in args[1]), f"{func} waits for places from the CPU"
        if op is ATEN._to_copy and args[0].device == CPU and kwargs.get("device") == META:
            assert kwargs.get("non_blocking"), "a blocking copy to the device"
        if op is ATEN.copy_ and args[0].device == META and args[1].device == CPU:
            assert args[1].ndim == 0 or (len(args) > 2 and args[2]), "a blocking copy to the device"
        return func(*args, **kwargs)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no autocast there."""
    monkeypatch.setattr(torch, "autocast", lambda *how, **settings: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)


@pytest.mark.parametrize(
    "pictured, packs, online", [(False, False, False), (True, False, False), (False, True, False), (False, True, True)]
)
def test_two_train_steps_on_a_device_without_values(tmp_path, monkeypatch, on_meta, pictured, packs, online):
    job = make_job(tmp_path, small_stage(steps=8), log_every=99, checkpoint_every=99, average=0.9)
    if pictured:
        entry = MixtureSource(dataset=job.mixture.text2image[0].dataset, rows="image2text", text="picture")
        job = job.model_copy(update={"mixture": job.mixture.model_copy(update={"text2image": (entry,)})})
    if online:
        file = str(tmp_path / "patch_latent.safetensors")
        job = job.model_copy(update={"latents": Online(autoencoder=file, device="meta", workers=0)})
    how = {"device": "meta", "execution": Execution(micro_rows=3, pack=packs), "guard": GuardConfig(sigmas=6.0)}
    real, watch, seen = loop.blocks_of_step, NoWaiting(), set()

    def blocks(stage, step):
        if step == 1:  # the first step makes tables that stay
            watch.__enter__()
        if step == 3:
            watch.__exit__(None, None, None)
            raise _Stepped
        made = real(stage, step)
        seen.update(block.task for block in made)
        return made

    monkeypatch.setattr(loop, "blocks_of_step", blocks)
    with pytest.raises(_Stepped):
        loop.train(job.model_copy(update=how))
    assert seen == {"text", "image2text", "text2image"}


def test_the_watch_sees_what_waits():
    mask, values = torch.zeros(4, 1, device="meta") > 0, torch.zeros(2, 3, device="meta", requires_grad=True)
    scattered = torch.zeros(4, 3, device="meta").masked_scatter(mask, values)  # as prompts had their pictures once
    counted = (lambda: scattered.sum().backward(), mask.nonzero, lambda: mask[mask], mask.any().item)
    for waits in counted:
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoWaiting():
            waits()
    with pytest.raises(AssertionError, match="blocking copy"), NoWaiting():
        torch.ones(3).to("meta")
    with NoWaiting():
        torch.ones(3).to("meta", non_blocking=True)


def test_small_tensors_of_the_step_go_through_pinned_memory(tmp_path, monkeypatch):
    """What a step makes on the CPU beside its batches: places and counts of the losses, ends and places of texts."""
    from harmon.model import packing
    from harmon.training import sources

    went = []
    for module in (packing, sources):
        monkeypatch.setattr(module, "sent", lambda x, device: went.append(x.device) or x.to(device, non_blocking=True))
    packing.Segments.of([3, 4], META)
    job = make_job(tmp_path, small_stage())
    losses = sources.SourceLosses(job.mixture, ["text"], META)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    losses.add("text", ChatBatch(None, ids, ids, torch.zeros(2, dtype=torch.int64)), torch.zeros(2, device=META))
    assert went == [CPU] * 4


def test_sharded_losses_leave_tensors_on_the_cpu_where_they_are(tmp_path):
    """FSDP moves what it sees among the arguments to the device, and waits for each."""
    from torch.distributed.fsdp._fully_shard._fsdp_state import _to_kwargs

    from harmon.training.parallel import _register_losses

    job = make_job(tmp_path, small_stage())
    model = Harmon(job.model)
    given = []
    _register_losses(model)
    model.gathered = lambda run: given.append(run)
    ids = torch.zeros(1, 2, dtype=torch.int64)
    model.image_to_text_loss(None, ids, labels=ids)
    (args,), _ = _to_kwargs(tuple(given), {}, META, False)
    assert args[0] is given[0]
    assert all(one.device == CPU for one in (*args[0].args, *args[0].keywords.values()) if one is not None)
