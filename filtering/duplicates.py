"""Exact duplicates: rows whose images are the same bytes, as fetched."""

from filtering.geometry import Drop


class ExactDuplicates:
    """Remembers the images it has been shown; the first row that brings one keeps it.

    Rows are to be shown in the order dataset, shard, row, so that which one stays does not depend on anything
    else.
    """

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def judge(self, sha256: str, key: str) -> Drop | None:
        """None for the first row with these bytes, else the key of the row that has them already."""
        first = self._first.setdefault(bytes.fromhex(sha256), key)
        return None if first == key else Drop("duplicate", f"same bytes as {first}")
