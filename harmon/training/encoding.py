"""Latents of pictures that are decoded while training: asked ahead, encoded by the frozen autoencoder, corrupt ones
rejected and recorded.

Float sums depend on the shape of a batch, so pictures are always encoded in batches of one shape: then the latents of a
picture do not depend on its neighbours, which the number of workers decides. On the CPU that shape is one picture; on
a GPU it is `BATCH`, the last batch filled with grey.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harmon.latents import load_autoencoder
from harmon.model.transfer import sent
from harmon.pictures import unit_pixels
from harmon.training.decoding import Asked, Decoder, Online
from harmon.training.draws import place_of_crop
from harmon.training.mixture import Block
from harmon.training.row import Place
from harmon.training.rows import StageRows
from harmon.training.squares import Pixels, Rejected, Wanted
from harmon.training.stage import StageConfig, Task
from pipelines.errors import HarmonError

BATCH = 16  # pictures that a GPU encodes together: the autoencoder's activations are large
log = logging.getLogger(__name__)


class OnlineLatents:
    """Latents of the samples of one stage whose pictures lie in image shards.

    Raises HarmonError: the autoencoder cannot be read, or its stride does not divide the stage's pixels.
    """

    def __init__(self, stage: StageConfig, online: Online, rows: StageRows) -> None:
        self.stage, self.online, self._rows = stage, online, rows
        self._autoencoder = load_autoencoder(online.autoencoder).to(online.device)
        if stage.px % self._autoencoder.stride:
            raise HarmonError(
                f"{stage.stage}: {stage.px} px are no multiple of the autoencoder's stride {self._autoencoder.stride}."
            )
        self._decoder = Decoder(online.workers)
        self._batch = 1 if torch.device(online.device).type == "cpu" else BATCH
        self._asked: dict[tuple[Task, int, int], list[Asked]] = {}  # by task, first number and count
        self._told: set[tuple[Task, str]] = set()
        self.rejected: dict[str, Counter[str]] = {}
        self.left: list[int] = []  # loss lines of the samples that `latents` left out last

    def ask_ahead(self, block: Block, rank: int, world: int) -> None:
        """Have this worker's share of `block`, and of the next blocks of its task, decoded."""
        if block.task == "text":
            return
        for later in range(self.online.ahead + 1):
            share = Block(block.task, block.start + later * block.rows, block.rows).share(rank, world)
            if share and _key(block.task, share) not in self._asked:
                self._asked[_key(block.task, share)] = self._ask(block.task, share)

    def latents(self, task: Task, numbers: Sequence[int]) -> tuple[list[int], Tensor]:
        """Those of `numbers` whose picture can be decoded, and their latents [B, C, h, w] float32."""
        asked = self._asked.pop(_key(task, numbers), None) or self._ask(task, numbers)
        kept, pixels, self.left = [], [], []
        for number, result in zip(numbers, chain.from_iterable(one.result() for one in asked), strict=True):
            if isinstance(result, Rejected):
                row = self._rows.row(task, number)
                self.left.append(row.line)
                self._reject(task, row.place, result)
            else:
                kept.append(number)
                pixels.append(result)
        if not kept:
            return [], torch.empty(0)
        starts = range(0, len(pixels), self._batch)
        return kept, torch.cat([self._encoded(pixels[start : start + self._batch]) for start in starts])

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    @torch.no_grad()
    def _encoded(self, pixels: Sequence[Pixels]) -> Tensor:
        images = torch.zeros(self._batch, 3, self.stage.px, self.stage.px)
        images[: len(pixels)] = torch.from_numpy(unit_pixels(np.stack(pixels)))
        return self._autoencoder.encode(sent(images, torch.device(self.online.device)))[: len(pixels)].float()

    def _ask(self, task: Task, numbers: Sequence[int]) -> list[Asked]:
        return self._decoder.ask([self._wanted(task, number) for number in numbers])

    def _wanted(self, task: Task, number: int) -> Wanted:
        place, padded = self._rows.row(task, number).place, task == "image2text"
        drawn = self.online.crop == "random" and not padded
        return Wanted(
            dataset=place.dataset,
            shard=place.shard,
            key=place.key,
            px=self.stage.px,
            padded=padded,
            at=place_of_crop(self.stage, task, number) if drawn else 0.5,
            draft=self.online.draft,
            resizer=self.online.resizer,
        )

    def _reject(self, task: Task, place: Place, why: Rejected) -> None:
        """Count a corrupt picture at every visit; write it down at the first."""
        self.rejected.setdefault(task, Counter())[why.reason] += 1
        if (task, place.key) in self._told:
            return
        self._told.add((task, place.key))
        told = f"{why.reason} ({why.detail})" if why.detail else why.reason
        log.warning("%s: the picture %s of %s is rejected: %s", self.stage.stage, place.key, place.dataset, told)
        if self.online.rejects is not None:
            line = {"stage": self.stage.stage, "task": task, "dataset": place.dataset, "shard": place.shard}
            path = Path(self.online.rejects)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:  # one write of a short line: several workers may add theirs
                file.write(json.dumps(line | {"key": place.key, "reason": why.reason, "detail": why.detail}) + "\n")


def _key(task: Task, numbers: Sequence[int]) -> tuple[Task, int, int]:
    return task, numbers[0], len(numbers)
