"""What a forgetting did, or would do, told to a person or a program."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.dataset import Dataset
from pipelines.forget import Relative, forget, forget_everywhere, plan_forgetting, relatives
from pipelines.lineage import derived
from pipelines.request import Request


@dataclass(frozen=True)
class Forgotten:
    """One dataset: samples that went (or would), shards written anew, commits made."""

    dataset: str
    samples: int
    shards: int
    commits: tuple[int, ...] = ()


@dataclass(frozen=True)
class ForgetReport:
    """The outcome over all datasets; `remaining` are those that still hold samples of the request."""

    dry_run: bool
    done: tuple[Forgotten, ...]
    remaining: tuple[Relative, ...]

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The report for a person."""
        for one in self.done:
            if self.dry_run:
                yield f"{one.dataset}: {one.samples:,} samples would go, {one.shards:,} shards would be written anew"
            elif one.commits:
                numbers = ", ".join(map(str, one.commits))
                yield f"{one.dataset}: {one.samples:,} samples forgotten, {one.shards:,} shards anew (commit {numbers})"
            else:
                yield f"{one.dataset}: nothing to do, all of it was forgotten before"
        for other in self.remaining:
            way = "was made from it: add --follow" if other.relation == "derived" else "is a source of it: forget there"
            yield f"{other.name} holds {other.samples:,} of them in {other.shards:,} shards and {way}"


def run_forget(dataset: Dataset, request: Request, follow: bool = False, dry_run: bool = False) -> ForgetReport:
    """Forget `request` in `dataset` (with `follow`: in everything made from it), or only say what that would do.

    Raises HarmonError as `forget` does.
    """
    if dry_run:
        plan = plan_forgetting(dataset, request)
        others = relatives(dataset, request)
        followed = [other for other in others if follow and other.relation == "derived"]
        done = [Forgotten(dataset.name, len(plan.keys), len(plan.shards))]
        done += [Forgotten(other.name, other.samples, other.shards) for other in followed]
        return ForgetReport(True, tuple(done), tuple(other for other in others if other not in followed))
    made = forget_everywhere(dataset, request) if follow else {dataset.name: forget(dataset, request)}
    known = {one.name: one for one in [dataset, *derived(dataset)]}
    told = []
    for name, commits in made.items():
        shards = {shard for commit in commits for shard in _rewritten(known[name], commit.number)}
        samples = sum(commit.rejected.get("forgotten", 0) for commit in commits)
        told.append(Forgotten(name, samples, len(shards), tuple(commit.number for commit in commits)))
    return ForgetReport(False, tuple(told), tuple(relatives(dataset, request)))


def _rewritten(dataset: Dataset, number: int) -> set[int]:
    """Shards whose files a commit took the place of."""
    before = set(dataset.commit(number - 1).files) if number else set()
    return {entry.shard for entry in before - set(dataset.commit(number).files)}
