"""Tells an outage from dead links, so that a shard which an outage kept out of reach is not taken for done.

A link was *answered* where a server that serves was reached: it gave bytes, redirected, or refused with a status below
500 that does not ask to come again. It is *lost* where none was: its name has no address, or none that is public (as a
captive portal's name server gives it), nothing connects, or the connection ends without an answer of that kind.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.rules import OWN_SIDE, TRANSIENT

STATUS = re.compile(r"http_[234]\d\d")
LATER = frozenset({"http_408", "http_425", "http_429"})  # statuses of a server that wants to be asked another time
ANSWERS = frozenset({"opted_out", "too_large", "redirects", "bad_url", "forbidden_scheme"})  # the last by a redirect
NEITHER = frozenset({"forbidden_port"})  # judged by the link alone
FEW = 5  # fewer links than this, all lost, may just be dead


def is_answer(reason: str | None) -> bool:
    """Whether a link with this reason (None: it gave bytes) was answered."""
    return reason is None or reason in ANSWERS or (reason not in LATER and STATUS.fullmatch(reason) is not None)


def is_outage(reasons: Sequence[str | None], others_answered: bool, share: float) -> bool:
    """Whether what kept links of a shard out of reach looks systemic, from the reason (None: fetched) of each.

    That is so where nothing answered and something is lost (a few dead links are believed while other shards have
    answers, but never failures of this side), where more than `share` of the links are lost, more than half of it for
    reasons that may pass, or more than a tenth of it for reasons of this side. At a share of 1 it never is.
    """
    lost = [reason for reason in reasons if not is_answer(reason) and reason not in NEITHER]
    own = [reason for reason in lost if reason in OWN_SIDE]
    if share >= 1 or not lost:
        return False
    if not any(is_answer(reason) for reason in reasons):
        return bool(own) or len(lost) >= FEW or not others_answered
    passing = [reason for reason in lost if reason in TRANSIENT]
    parts = ((lost, share), (passing, share / 2), (own, share / 10))
    return any(len(part) >= FEW and len(part) > limit * len(reasons) for part, limit in parts)


@dataclass
class Watch:
    """Judges the shards of one run, in the order in which they land."""

    share: float
    """A larger share of lost links than this is an outage; see `is_outage`."""
    answered: bool = False
    """Whether any link was answered in this run; what an earlier run saw says nothing about now."""

    def is_cut_off(self, reasons: Sequence[str | None], canaries: Sequence[str | None] = ()) -> bool:
        """Whether a shard is to stay open, by the reasons of its links.

        `canaries` are the reasons of links that answered before and were asked together with it: where there are some,
        they alone decide, since every link of a retry may well be dead.
        """
        self.answered = self.answered or any(is_answer(reason) for reason in (*reasons, *canaries))
        if canaries:
            return is_outage(canaries, False, self.share)
        return is_outage(reasons, self.answered, self.share)
