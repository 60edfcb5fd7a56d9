"""An Inception network as an examiner of a run's pictures: the features that `harmon evaluate` keeps, and what they are
compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harmon.evaluation.drawn import Drawn
from harmon.evaluation.examiner import Reference
from harmon.evaluation.fid.inception import Extractor
from harmon.evaluation.fid.protocols import Protocol
from harmon.evaluation.fid.statistics import FidStore, Progress, Statistics
from harmon.evaluation.question import Picture
from pipelines.workspace import Journal


class FidExaminer:
    """Measures pictures by one protocol and extractor."""

    def __init__(
        self,
        protocol: Protocol,
        extractor: Extractor,
        real: Sequence[tuple[str, Picture]] | Statistics,
        folder: Path,
    ) -> None:
        """`real` as `protocols.references` gives it, or published statistics; features are kept below `folder`."""
        self._protocol, self._extractor, self._real = protocol, extractor, real
        self._store = FidStore(folder, extractor, protocol.preparation)
        self._reference: Reference | None = None

    @property
    def name(self) -> str:
        return f"{self._protocol.name}, {self._extractor.label}"

    @property
    def configuration(self) -> Mapping[str, Any]:
        told = {"kind": "fid", "features": self._extractor.key, "extractor": self._extractor.name}
        told |= {"weights_sha256": self._extractor.weights_sha256}
        return told | {"preparation": self._protocol.preparation.report()}

    @property
    def differs(self) -> Sequence[str]:
        own = () if self._extractor.published else (f"Features are by {self._extractor.label}.",)
        return (*own, f"Measured by the protocol {self._protocol.name}: the paper states none, nor the extractor.")

    def examine(self, pictures: Sequence[Drawn], journal: Journal) -> list[Mapping[str, Any]]:
        """The features of each picture, as a list of 32-bit numbers."""
        del journal  # features are kept by the picture's content already
        values = self._store.features(pictures).values
        return [{"features": row, "status": "ok", "reason": None} for row in values]

    def reference(self, on_progress: Progress | None = None) -> Reference:
        """The real pictures' features, kept by the content of their set; by category where the protocol says so, but
        not of published statistics."""
        if self._reference is None:
            self._reference = self._compared(on_progress)
        return self._reference

    def _compared(self, on_progress: Progress | None) -> Reference:
        if isinstance(self._real, Statistics):
            return Reference(self._real.moments, self._real.identity)
        whole = self._store.statistics([picture for _, picture in self._real], on_progress)
        if self._protocol.by is None:
            return Reference(whole.moments, whole.identity)
        of = defaultdict[str, list[Picture]](list)
        for value, picture in self._real:
            of[value].append(picture)
        by = {value: self._store.statistics(some).moments for value, some in sorted(of.items()) if len(some) > 1}
        return Reference(whole.moments, whole.identity, self._protocol.by, by)
