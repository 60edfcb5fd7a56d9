"""An ablation: one grid file, a recipe varied cell by cell and seed by seed, and one table of what came out.

    flows/recipes/ablations/table7-demo.yaml   recipe, seeds, and what each cell lays over the recipe
    RUNS/seed0/                                the run folder of a seed, which cells take one after another (also those
                                               of other grids with these `runs`): stages that two train alike are
                                               trained once
    RUNS/table7-demo/<cell>-seed0.json         the scores of a finished cell, and the key of what was run
    RUNS/table7-demo/table.md, table.json      mean and standard deviation over the seeds that are done

A cell that is done is not run again, and one that was killed goes on where its recipe stands. Cells of one seed must
not run at the same time.
"""

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from flows.recipe import Recipe, recipe_values
from pipelines.canonical import canonical_json, sha256_hex
from pipelines.disk import write_whole
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import Settings, laid_over, nearest, parse, read_yaml, with_override

Spread = tuple[float, float | None]
"""Mean and standard deviation (of a sample; None of a single value) over seeds."""


class Grid(Settings):
    """A grid file."""

    title: str
    """What the paper calls it, and what is ours in it."""
    recipe: str
    """The recipe that is varied, named from this file."""
    runs: str
    """Folder of all its runs; grids that vary one recipe may share it."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of the stages; every cell is run with each."""
    base: Mapping[str, Any] = {}
    """Laid over the recipe in every cell."""
    cells: Mapping[str, Mapping[str, Any]] = Field(min_length=1)
    """What each cell lays over that, by its name in the table."""


@dataclass(frozen=True)
class Ablation:
    """A grid and where it stands."""

    grid: Grid
    file: Path
    settings: tuple[str, ...] = ()
    """path.to.key=value laid over the recipe of every cell."""

    @classmethod
    def read(cls, file: Path, settings: Sequence[str] = ()) -> "Ablation":
        """Raises ConfigurationError where the file is no grid."""
        return cls(parse(Grid, read_yaml(file), str(file)), file, tuple(settings))

    @property
    def runs(self) -> Path:
        return Path(self.grid.runs).absolute()

    @property
    def folder(self) -> Path:
        """Of its results."""
        return self.runs / self.file.stem

    def recipe(self, cell: str, seed: int) -> Recipe:
        """The recipe of one cell. Raises ConfigurationError where there is no such cell, or it makes no recipe."""
        if cell not in self.grid.cells:
            raise ConfigurationError(f"{self.file} has no cell '{cell}'; {nearest(cell, list(self.grid.cells))}.")
        values = recipe_values(self.file.parent / self.grid.recipe)
        for layer in (self.grid.base, self.grid.cells[cell]):
            values = laid_over(values, layer)
        values = laid_over(values, {"training": {"variation": {"seed": seed}}})
        values |= {"name": f"{self.file.stem}-{slug(cell)}", "runs": str(self.runs / f"seed{seed}")}
        for setting in self.settings:
            with_override(values, setting)
        return parse(Recipe, values, f"{self.file}, cell '{cell}'")

    def result(self, cell: str, seed: int) -> dict[str, Any] | None:
        """What a finished cell scored; None where it has not run, or was another recipe then."""
        try:
            found: dict[str, Any] = json.loads(self._file(cell, seed).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if found.get("key") == _key(self.recipe(cell, seed)) else None

    def run(self, cell: str, seed: int) -> None:
        """Run one cell to its scores, in this process. Raises as `flows.run.run_recipe`."""
        from flows.run import run_recipe

        recipe = self.recipe(cell, seed)
        run_recipe(recipe, last="evaluate")
        scores = json.loads((recipe.run_folder / "evaluation/scores.json").read_bytes())
        kept = {name: scores[name] for name in ("checkpoint", "generation", "answers")}
        file = self._file(cell, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        result = {"key": _key(recipe), "cell": cell, "seed": seed, **kept}
        write_whole(file, (json.dumps(result, indent=1) + "\n").encode())

    def run_all(self, say: Callable[[str], None], seeds: Sequence[int] | None = None) -> None:
        """Run every cell that is not done, seed after seed, each in a process of its own; the table after each.

        Raises HarmonError where one fails: it has said why, and the others' results stay.
        """
        todo = [(cell, seed) for seed in seeds or self.grid.seeds for cell in self.grid.cells]
        for number, (cell, seed) in enumerate(todo, 1):
            if self.result(cell, seed) is None:
                say(f"{number} of {len(todo)}: {cell}, seed {seed}")
                options = [one for setting in self.settings for one in ("--set", setting)]
                # Prefect remembers the first server of a process, so that each cell needs one of its own
                command = [sys.executable, "-m", "flows.cli", "ablate", str(self.file), "--cell", cell, "--seed"]
                command.append(str(seed))
                if subprocess.run([*command, *options]).returncode:
                    raise HarmonError(f"{cell}, seed {seed} has failed; mend that and run the ablation again.")
            self.write_table()

    def write_table(self) -> str:
        """Write table.md and table.json of the cells that are done, and return the first."""
        rows = {
            cell: [measures(one) for seed in self.grid.seeds if (one := self.result(cell, seed))]
            for cell in self.grid.cells
        }
        columns = list(dict.fromkeys(name for results in rows.values() for one in results for name in one))
        told = {
            cell: {name: _spread([one[name] for one in some if name in one]) for name in columns}
            for cell, some in rows.items()
        }
        text = markdown(self.grid.title, columns, told, {cell: len(some) for cell, some in rows.items()})
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "table.md").write_text(text)
        (self.folder / "table.json").write_text(json.dumps(told, indent=1) + "\n")
        return text

    def _file(self, cell: str, seed: int) -> Path:
        return self.folder / f"{slug(cell)}-seed{seed}.json"


def measures(result: Mapping[str, Any]) -> dict[str, float]:
    """The columns of a table: shares of pictures and answers that are right."""
    found = {}
    for name, score, title in _COLUMNS:
        if name in result["generation"]:
            found[title] = float(result["generation"][name][score]["share"])
    answers = result["answers"]
    if answers:
        found["answers"] = statistics.fmean(one["share"] for one in answers)
        found["answers over chance"] = statistics.fmean(one["share"] - one["chance"] for one in answers)
    return found


_COLUMNS = (
    ("held_out", "colour", "colour, unseen pair"),
    ("held_out", "shape", "shape, unseen pair"),
    ("seen", "both", "both, trained pair"),
    ("two", "colour", "both colours of two"),
    ("two", "both", "two objects whole"),
)


def markdown(
    title: str,
    columns: Sequence[str],
    told: Mapping[str, Mapping[str, Spread | None]],
    seeds: Mapping[str, int],
) -> str:
    """The table, a cell a row; percent, with the standard deviation over seeds where there are several."""
    lines = [title, "", "| | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for cell, values in told.items():
        shown = [_shown(values[name]) for name in columns]
        lines.append(f"| {cell} | {seeds[cell]} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def slug(cell: str) -> str:
    """A cell's name in names of files and recipes."""
    return re.sub(r"[^a-z0-9]+", "-", cell.lower()).strip("-")


def _shown(value: Spread | None) -> str:
    if value is None:
        return "-"
    mean, deviation = value
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _key(recipe: Recipe) -> str:
    return sha256_hex(canonical_json(recipe.model_dump(mode="json")))
