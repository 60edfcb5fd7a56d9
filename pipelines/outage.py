"""Tells an outage from dead links, so that a shard which an outage kept out of reach is not taken for done."""

from collections.abc import Sequence

from pipelines.rules import OWN_SIDE

UNREACHED = OWN_SIDE | {"dead_link", "timeout", "paused", "http_429", "http_503"}  # no server that serves was reached
FEW = 5  # fewer links than this, all unreached, may just be dead


def is_outage(reasons: Sequence[str | None], others_answered: bool, share: float) -> bool:
    """Whether what kept links of a shard out of reach looks systemic, from the reason (None: fetched) of each.

    That is so where nothing at all was reached (a few dead links are believed where other shards had answers), where
    more than `share` of the links were not, or more than a fifth of it for reasons that are seldom a link's own.
    At a share of 1 it never is.
    """
    lost, own = (sum(reason in kind for reason in reasons) for kind in (UNREACHED, OWN_SIDE))
    if share >= 1:
        return False
    if lost == len(reasons):
        return lost >= FEW or not others_answered
    return (lost >= FEW and lost > share * len(reasons)) or (own >= FEW and own > share / 5 * len(reasons))
