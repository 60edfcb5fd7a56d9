"""Column groups by name: which one a short name means, who wrote one, and whether one can be written."""

from collections.abc import Sequence

from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import Commit
from pipelines.steps import Step


def full_name(datasets: Sequence[Dataset], name: str) -> str:
    """The group that `name` means: one of that name, or the only one of some datasets that begins with it and a dot.
    The name itself where there is neither.

    Raises ConfigurationError where it begins several.
    """
    known = {group for dataset in datasets for group in dataset.groups()}
    found = sorted(group for group in known if group.startswith(f"{name}."))
    if name in known or not found:
        return name
    if len(found) > 1:
        raise ConfigurationError(f"'{name}' may be the column group {' or '.join(found)}; write one of them whole.")
    return found[0]


def writer_of(dataset: Dataset, group: str) -> Commit | None:
    """The commit by which a group came, before any forgetting; None where it never did."""
    return next((commit for commit in dataset.commits() if any(one.group == group for one in commit.files)), None)


def check_free(dataset: Dataset, group: str, step: Step) -> None:
    """Raise ConfigurationError where a group stands that another step wrote: `step` could work, but never commit."""
    if not dataset.entries(group) or dataset.commit_of(step.key) is not None:
        return
    by = writer_of(dataset, group)
    told = f" (commit {by.number}, step {by.step}, version {by.version})" if by else ""
    raise ConfigurationError(
        f"{dataset.root} has the column group '{group}' from other settings or other inputs{told}, and nothing is ever "
        "rewritten; leave that column out of the recipe to use it as it is, or make the dataset anew."
    )
