"""What one question asks, by name: equal inputs asked the same way have equal work, in any row of any dataset."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.canonical import canonical_json, sha256_hex
from recaption.engines import Question
from recaption.language_model import LanguageModel
from recaption.prompt import Prompt, Sampling, without_control_tokens


@dataclass(frozen=True)
class Asking:
    """How the questions of one prompt to one model are named and put."""

    prompt: Prompt
    hash: str
    """Of the message, the image's size, sampling and the model's files."""

    def work(self, caption: str | None, image: bytes | None) -> str:
        """32 hex digits of the SHA-256 over how it is asked, the caption as it is sent, and the image as stored."""
        digest = hashlib.sha256(self.hash.encode())
        sent = None if caption is None else without_control_tokens(caption)
        digest.update(b"\0" if sent is None else b"\1" + sent.encode("utf-8", "surrogatepass"))
        digest.update(b"\0" if image is None else b"\1" + hashlib.sha256(image).digest())
        return digest.hexdigest()[:32]

    def drawn(self, work: str, draw: int) -> str | None:
        """Names how a draw after the first is sampled, which `work` does not say; None: it is the first."""
        if not draw:
            return None
        return sha256_hex(canonical_json([work, draw, self._sampling(work, draw).model_dump(mode="json")]))[:32]

    def question(
        self, work: str, draw: int, caption: str | None, picture: Callable[[], bytes | None] | None
    ) -> Question:
        """The question of `work` at its draw-th time; `picture`: makes the image at the size that is sent."""
        return Question(work, draw, self.prompt.message(caption), self._sampling(work, draw), picture)

    def _sampling(self, work: str, draw: int) -> Sampling:
        sampling = self.prompt.sampling
        if draw and self.prompt.retry:
            sampling = sampling.model_copy(update={"method": "random", "temperature": self.prompt.retry.temperature})
        if sampling.method == "greedy":
            return sampling
        seed = int(sha256_hex(f"{work}/{draw}".encode())[:8], 16) & 0x7FFFFFFF
        return sampling.model_copy(update={"seed": seed})


def asking(prompt: Prompt, model: LanguageModel) -> Asking:
    """How `prompt` is put to `model`."""
    return Asking(prompt, sha256_hex(canonical_json({"prompt": prompt.asking_hash, "model": model.identity()})))
