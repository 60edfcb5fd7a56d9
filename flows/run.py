"""Running a recipe: find what is not done, and do it as one Prefect flow with one task for each step and dataset."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.flow_run import Cancelled
from flows.recipe import Recipe
from flows.server import prefect_server
from flows.work import work_of
from flows.work_item import Work
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import nearest


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    recipe: str
    did: tuple[str, ...]
    """Steps that were done now; the others had been done before."""
    steps: int
    report: str | None

    def to_json(self) -> dict[str, Any]:
        """As `harmon run --json` prints it."""
        return asdict(self)

    def sentence(self) -> str:
        """As `harmon run` prints it."""
        did = (
            f"{len(self.did)} of {self.steps} steps were to do" if self.did else "nothing was to do: every step is done"
        )
        return f"{self.recipe}: {did}." + (f" The report is {self.report}" if self.report else "")


def run_recipe(
    recipe: Recipe,
    first: str | None = None,
    last: str | None = None,
    redo: str | None = None,
    within: Callable[[Recipe, Sequence[Work]], list[str]] | None = None,
) -> Outcome:
    """Do every step of `recipe` between `first` and `last` that is not done; Prefect starts only if there is one.

    The results of step `redo` are taken away first: it is done again, and what was made from it after it. `within` does
    the steps; None: a Prefect flow run of their own.

    Raises:
        ConfigurationError: a step's name that the recipe does not have, `first` while a step before it is not done, or
            a step to redo whose result stands in a dataset.
    """
    chosen = _chosen(work_of(recipe), first, last)
    if redo:
        _undo(chosen, redo)
    undone = next((number for number, work in enumerate(chosen) if not work.is_done()), None)
    did: tuple[str, ...] = ()
    if undone is not None:
        did = tuple((within or _as_flow)(recipe, chosen[undone:]))
    report = recipe.run_folder / "report.html"
    return Outcome(recipe.name, did, len(chosen), _shown(report) if report.exists() else None)


def _chosen(works: list[Work], first: str | None, last: str | None) -> list[Work]:
    names = list(dict.fromkeys(work.step for work in works))
    for given in filter(None, (first, last)):
        if given not in names:
            raise ConfigurationError(f"The recipe has no step '{given}'; {nearest(given, names)}.")
    begin = names.index(first) if first else 0
    end = names.index(last) if last else len(names) - 1
    if end < begin:
        raise ConfigurationError(f"--until {last} comes before --from {first}; turn them round.")
    before = next((w for w in works if names.index(w.step) < begin and not w.is_done()), None)
    if before is not None:
        raise ConfigurationError(f"--from {first}: the step {before.name} before it is not done; leave --from out.")
    return [work for work in works if begin <= names.index(work.step) <= end]


def _undo(works: Sequence[Work], redo: str) -> None:
    """Take away what the steps called `redo` have made, or begun to make.

    The last goes first, since each is named after those before it. Steps behind the first one that is not done have
    nothing yet.
    """
    names = list(dict.fromkeys(work.step for work in works))
    if redo not in names:
        raise ConfigurationError(f"--redo: this run has no step '{redo}'; {nearest(redo, names)}.")
    if not any(work.undo for work in works if work.step == redo):
        raise ConfigurationError(
            f"--redo {redo}: its result stands in a dataset, where nothing is overwritten; "
            "change what it computes, or name a new folder with --set data=FOLDER."
        )
    made = []
    for work in works:
        if work.step == redo and work.undo:
            made.append(work.undo)
        if not work.is_done():
            break
    for undo in reversed(made):
        undo()


def _as_flow(recipe: Recipe, works: Sequence[Work]) -> list[str]:
    """Run `works` in order as one Prefect flow run; returns the names of those that were done."""
    with prefect_server(recipe.run_folder / "logs" / "prefect.log"):
        import prefect  # after the server's address is set, which Prefect reads once
        from prefect import State
        from prefect.exceptions import CancelledRun
        from prefect.logging.handlers import APILogWorker

        from flows.flow_body import do_all

        def flow() -> list[str] | State[list[str]]:
            try:
                return do_all(recipe, works)
            except Cancelled as error:
                return prefect.states.Cancelled(message=str(error))

        try:
            did = prefect.flow(name=f"harmon {recipe.name}", validate_parameters=False)(flow)()
            assert isinstance(did, list)  # Prefect raises where the state is Cancelled
            return did
        except CancelledRun as error:
            raise HarmonError(str(error)) from None
        finally:
            APILogWorker.drain_all(timeout=5)  # before the embedded server goes


def _shown(path: Path) -> str:
    """`path` as a person in this folder would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
