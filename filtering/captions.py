"""Which of several caption versions a row is trained with: drawn by share, from its key."""

import hashlib
from collections.abc import Mapping

import pyarrow as pa

from pipelines.manifest import SOURCE

CHOSEN = "caption.chosen"


def chosen_captions(
    source: pa.Table, groups: Mapping[str, pa.Table], shares: Mapping[str, float], seed: int
) -> pa.Table:
    """key, text, version, status and reason of each row of `source`.

    A row's draw is among the versions that it has: where one is missing, the others' shares grow in proportion. So the
    shares hold over the rows that have every version.
    """
    versions = {
        name: (source if name == SOURCE else groups[name]).column("caption" if name == SOURCE else "text").to_pylist()
        for name in sorted(shares)
    }
    keys = source.column("key").to_pylist()
    chosen = [
        _drawn(key, {name: shares[name] for name, texts in versions.items() if texts[row]}, seed)
        for row, key in enumerate(keys)
    ]
    texts = [versions[name][row] if name else None for row, name in enumerate(chosen)]
    return pa.table(
        {
            "key": source.column("key"),
            "text": pa.array(texts, pa.string()),
            "version": pa.array(chosen, pa.string()),
            "status": pa.array(["ok" if name else "failed" for name in chosen], pa.string()),
            "reason": pa.array([None if name else "no_caption" for name in chosen], pa.string()),
        }
    )


def _drawn(key: str, shares: Mapping[str, float], seed: int) -> str | None:
    """A version, each with its share of the probability; None where none is left."""
    digest = hashlib.sha256(f"caption\n{seed}\n{key}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / (1 << 64) * sum(shares.values())
    for name, share in shares.items():
        at -= share
        if at < 0:
            return name
    return next((name for name in reversed(list(shares)) if shares[name] > 0), None)
