"""What a recipe's run has done: the seconds of its steps, and the lines of metrics of its training stages."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from harmon.training.job import JOB, METRICS, metrics_lines, parsed_lines

STAGE = ["recipe", "stage", "run"]
# gauge, its help, and the name of the number in a line of metrics
NUMBERS = (
    ("harmon_train_gradient_norm", "Norm of the gradient before it is clipped.", "gradient_norm"),
    ("harmon_train_samples_per_second", "Samples a second of all workers.", "samples_per_second"),
    ("harmon_train_tokens_per_second", "Tokens a second that the language model reads.", "tokens_per_second"),
    ("harmon_train_flops_per_second", "FLOP a second of all workers.", "flops_per_second"),
    ("harmon_train_mfu", "Share of the GPUs' peak rate; absent on a CPU.", "mfu"),
    ("harmon_train_data_wait_share", "Share of the time in which workers wait for samples.", "data_share"),
    ("harmon_train_peak_memory_bytes", "Most that one worker has taken.", "peak_memory"),
    ("harmon_train_workers", "Workers at the last line.", "workers"),
)


class RunMetrics(Collector):
    """A collector of prometheus_client over a run's folder."""

    def __init__(self, recipe: str, run: Path) -> None:
        self._recipe, self._run = recipe, run

    def describe(self) -> Iterator[Metric]:
        """Nothing is read at registration."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All families, from what stands now."""
        yield self._steps()
        yield from self._stages()

    def _steps(self) -> Metric:
        steps = GaugeMetricFamily(
            "harmon_run_step_seconds", "Of a step, the last time it ended.", labels=["recipe", "step", "subject"]
        )
        path = self._run / "timings.jsonl"
        lines = parsed_lines(path.read_text()) if path.is_file() else []
        for (step, subject), seconds in {(one["step"], one["subject"]): one["seconds"] for one in lines}.items():
            steps.add_metric([self._recipe, step, subject], seconds)
        return steps

    def _stages(self) -> Iterator[Metric]:
        gauges = {name: GaugeMetricFamily(name, told, labels=STAGE) for name, told, _ in NUMBERS}
        step = GaugeMetricFamily("harmon_train_step", "Train steps that are done.", labels=STAGE)
        planned = GaugeMetricFamily("harmon_train_steps_planned", "Train steps of the stage.", labels=STAGE)
        told = GaugeMetricFamily("harmon_train_last_line_seconds", "Unix time of the last line.", labels=STAGE)
        loss = GaugeMetricFamily("harmon_train_loss", "Mean since the line before.", labels=[*STAGE, "task"])
        rate = GaugeMetricFamily("harmon_train_learning_rate", "At the last line.", labels=[*STAGE, "part"])
        samples = CounterMetricFamily("harmon_train_samples", "Samples seen.", labels=[*STAGE, "task"])
        skipped = CounterMetricFamily("harmon_train_steps_skipped", "Train steps that the guard skipped.", labels=STAGE)
        rejected = CounterMetricFamily(
            "harmon_train_samples_rejected", "Samples without a picture or text.", labels=[*STAGE, "task"]
        )
        parts: tuple[tuple[GaugeMetricFamily | CounterMetricFamily, str], ...]
        parts = ((loss, "loss"), (rate, "rate"), (samples, "samples"))
        for folder in sorted((self._run / "train").glob("*/")):
            lines = metrics_lines(folder)
            if not lines:
                continue
            labels, last = [self._recipe, folder.name.rpartition("-")[0], folder.name], lines[-1]
            step.add_metric(labels, last["step"])
            told.add_metric(labels, (folder / METRICS).stat().st_mtime)
            planned.add_metric(labels, _planned(folder))
            for name, _, key in NUMBERS:
                if (number := last.get(key)) is not None:
                    gauges[name].add_metric(labels, number)
            for family, key in parts:
                for part, number in last.get(key, {}).items():
                    if number is not None:  # a loss that is not finite stands as null
                        family.add_metric([*labels, part], number)
            skipped.add_metric(labels, sum(len(line.get("skipped", ())) for line in lines))
            for task, number in _rejected(lines).items():
                rejected.add_metric([*labels, task], number)
        yield from (step, planned, told, loss, rate, samples, skipped, rejected, *gauges.values())


def _planned(folder: Path) -> float:
    return float(json.loads((folder / JOB).read_text())["stage"]["steps"])


def _rejected(lines: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """By task, over all lines and sources."""
    found: Counter[str] = Counter()
    for line in lines:
        for task, sources in line.get("rejected", {}).items():
            found[task] += sum(sources.values())
    return found
