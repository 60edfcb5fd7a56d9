"""What the checks of a prompt, as they are today, make of texts: of answers, and of captions that stand already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recaption.checks import Verdict, verdict
from recaption.engines import Answer
from recaption.known import Known
from recaption.prompt import Prompt
from recaption.work import Asking


@dataclass(frozen=True)
class Judge:
    """Decides by one prompt. `asking`: how its questions are put."""

    prompt: Prompt
    asking: Asking

    def wants_more(self, answer: Answer, draw: int, caption: str | None) -> bool:
        """Whether another draw is due after this one."""
        if answer.refusal or self.prompt.retry is None or draw >= self.prompt.retry.times:
            return False
        return self._verdict(answer.text, answer.finish_reason, caption).ask_again

    def stands(self, work: str, known: Known, caption: str | None, unflagged: bool) -> bool:
        """Whether a caption made elsewhere may answer this work; `unflagged`: only without a failed check.

        One that was not drawn first was drawn as the retry of its prompt said: it answers where today's says so too.
        """
        times = self.prompt.retry.times if self.prompt.retry else 0
        if known.draw > times or known.drawn != self.asking.drawn(work, known.draw):
            return False
        judged = self._verdict(known.text, known.finish_reason, caption)
        return not judged.failed if unflagged else judged.reason is None

    def today(self, row: Mapping[str, Any], caption: str | None) -> dict[str, Any]:
        """A row of a caption group as today's checks see it: a text that fails now is none."""
        if row["status"] != "ok":
            return dict(row)
        return {**row, **self._said(row["text"], row["finish_reason"], caption)}

    def reused(self, known: Known, caption: str | None) -> dict[str, Any]:
        """The columns of a row that is answered by a caption made elsewhere."""
        spent = {"tokens_in": known.tokens_in, "tokens_out": known.tokens_out}
        drawn = {"draw": known.draw, "drawn": known.drawn, "finish_reason": known.finish_reason}
        return self._said(known.text, known.finish_reason, caption) | spent | drawn

    def answered(self, work: str, answers: Sequence[Answer], caption: str | None) -> dict[str, Any]:
        """The columns of a row that was asked: the last draw's answer, the tokens of all."""
        last, draw = answers[-1], len(answers) - 1
        if last.refusal:
            said: dict[str, Any] = {"text": None, "status": "failed", "reason": last.refusal, "checks": []}
        else:
            said = self._said(last.text, last.finish_reason, caption)
        spent = {name: _sum([getattr(one, name) for one in answers]) for name in ("tokens_in", "tokens_out")}
        drawn = {"draw": draw, "drawn": self.asking.drawn(work, draw), "finish_reason": last.finish_reason}
        return said | spent | drawn

    def _said(self, text: str | None, finish_reason: str | None, caption: str | None) -> dict[str, Any]:
        judged = self._verdict(text, finish_reason, caption)
        return {
            "text": None if judged.reason else (text or "").strip(),
            "status": "failed" if judged.reason else "ok",
            "reason": judged.reason,
            "checks": list(judged.failed),
        }

    def _verdict(self, text: str | None, finish_reason: str | None, caption: str | None) -> Verdict:
        caption = caption if self.prompt.reads_caption else None
        return verdict((text or "").strip(), finish_reason or "", caption, self.prompt)


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
