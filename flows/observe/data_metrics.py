"""What the steps of a recipe's datasets have done, read from the receipts of their shards.

A receipt is the truth of one finished shard, never changes, and outlives the process that wrote it, wherever it ran. So
each is read once, no shard counts twice, and a worker needs neither a port nor a library.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import Receipt
from pipelines.steps import READERS

RECEIPT = re.compile(r"steps/([0-9a-f]{64})/(\d{5,})\.json")
LABELS = ["recipe", "dataset", "step", "key"]
log = logging.getLogger(__name__)


@dataclass
class _Done:
    """The finished shards of one step."""

    step: str
    shards: int = 0
    rows_in: int = 0
    rows_out: int = 0
    bytes: int = 0
    seconds: float = 0.0
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by how they left (rejected, failed) and why."""

    def add(self, receipt: Receipt) -> None:
        self.shards += 1
        self.rows_in += receipt.rows_in
        self.rows_out += receipt.rows_out
        self.bytes += sum(entry.bytes for entry in receipt.files)
        self.seconds += float(receipt.context.get("seconds", 0.0))
        for how, counted in (("rejected", receipt.rejected), ("failed", receipt.failed)):
            for reason, rows in counted.items():
                self.left[how, reason] += rows


class DatasetReceipts:
    """The counts of one dataset, which grow as receipts appear."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.steps: dict[str, _Done] = {}
        """By step key."""
        self._seen: set[str] = set()

    def look(self) -> None:
        """Take in the receipts that are new."""
        new = [path for path in self.dataset.store.list("steps") if path not in self._seen and RECEIPT.fullmatch(path)]
        with ThreadPoolExecutor(READERS) as pool:
            for path, receipt in zip(new, pool.map(self._read, new), strict=True):
                if receipt is not None:
                    self._seen.add(path)
                    self.steps.setdefault(receipt.step_key, _Done(receipt.step)).add(receipt)

    def _read(self, path: str) -> Receipt | None:
        try:
            return Receipt.from_bytes(self.dataset.store.read(path), self.dataset.store.where(path))
        except HarmonError as error:  # taken away by a repair between the listing and now, or damaged: audit's affair
            log.warning("metrics: a receipt is left out: %s", error)
            return None


class DataMetrics(Collector):
    """A collector of prometheus_client over some datasets."""

    def __init__(self, recipe: str, datasets: Sequence[Dataset]) -> None:
        self._recipe = recipe
        self._receipts = [DatasetReceipts(dataset) for dataset in datasets]

    def describe(self) -> Iterator[Metric]:
        """Nothing is read at registration."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families, from what stands now."""
        shards = CounterMetricFamily("harmon_step_shards", "Finished shards of a step.", labels=LABELS)
        rows = CounterMetricFamily("harmon_step_rows", "Rows that went in, and out.", labels=[*LABELS, "direction"])
        left = CounterMetricFamily(
            "harmon_step_rows_left", "Rows that left a step, by why.", labels=[*LABELS, "how", "reason"]
        )
        bytes_ = CounterMetricFamily("harmon_step_bytes", "Bytes written.", labels=LABELS)
        seconds = CounterMetricFamily(
            "harmon_step_shard_seconds", "Seconds of all finished shards, each by its own clock.", labels=LABELS
        )
        committed = GaugeMetricFamily("harmon_step_committed", "1 where the step has its commit.", labels=LABELS)
        for one in self._receipts:
            one.look()
            commits = {commit.step_key for commit in one.dataset.commits()}
            for key, done in one.steps.items():
                labels = [self._recipe, one.dataset.name, done.step, key[:8]]
                shards.add_metric(labels, done.shards)
                rows.add_metric([*labels, "in"], done.rows_in)
                rows.add_metric([*labels, "out"], done.rows_out)
                for (how, reason), number in done.left.items():
                    left.add_metric([*labels, how, reason], number)
                bytes_.add_metric(labels, done.bytes)
                seconds.add_metric(labels, done.seconds)
                committed.add_metric(labels, float(key in commits))
        yield from (shards, rows, left, bytes_, seconds, committed)
