"""What a recaptioning has left to ask: one answer for the run and for the look before it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipelines.dataset import Dataset
from recaption.choice import ChosenRows
from recaption.judge import Judge
from recaption.known import Known, KnownCaptions
from recaption.ledger import Ledger
from recaption.recaption import Recaption
from recaption.work import asking


class Left:
    """Sees captions that stand, in any dataset that may answer, and answers of runs that were killed."""

    def __init__(self, recaption: Recaption, known: KnownCaptions | None, ledger: Ledger | None) -> None:
        """`known`: captions that may answer identical work, if any may."""
        self._judge = Judge(recaption.prompt, asking(recaption.prompt, recaption.model))
        self._unflagged = recaption.rows.only == "flagged"  # those are asked because of their flags
        self._known = known
        self._ledger = ledger

    def known(self, rows: ChosenRows) -> dict[str, Known]:
        """The works of these rows that a caption answers which passes the checks of now."""
        if self._known is None:
            return {}
        captions = _captions(rows)

        def stands(work: str, known: Known) -> bool:
            return self._judge.stands(work, known, captions[work], self._unflagged)

        return self._known.find(captions, stands)

    def to_ask(self, rows: ChosenRows) -> dict[str, str]:
        """The works of these rows that somebody has to be asked for, each with the first key that it is for."""
        captions = _captions(rows)
        there = set(self.known(rows))
        for work, answers in self._ledger.answers(captions) if self._ledger else ():
            if not self._judge.wants_more(answers[-1], len(answers) - 1, captions[work]):
                there.add(work)
        keys: dict[str, str] = {}
        for name, key in zip(rows.works, rows.keys, strict=True):
            if name and name not in there:
                keys.setdefault(name, key)
        return keys


@contextmanager
def left(dataset: Dataset, recaption: Recaption, reuse: Sequence[Dataset] = ()) -> Iterator[Left]:
    """What `recaption` has left of `dataset`, without a trace in it."""
    folder = Ledger.folder(dataset)
    known = None if recaption.rows.only == "all" else KnownCaptions((dataset, *reuse))
    if not folder.is_dir():
        yield Left(recaption, known, None)
        return
    with Ledger(folder, asking(recaption.prompt, recaption.model), recaption.rows.ledger_round) as ledger:
        yield Left(recaption, known, ledger)


def _captions(rows: ChosenRows) -> dict[str, str | None]:
    return {work: caption for work, caption in zip(rows.works, rows.captions, strict=True) if work}
