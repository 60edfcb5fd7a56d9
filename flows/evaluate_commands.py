"""`harmon evaluate`: benchmarks of a checkpoint, and the lists that keep benchmarks out of training data. Nothing heavy
is imported at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.model_commands import _model_options, _named
from flows.terminal import shown_progress
from pipelines.errors import ConfigurationError, HarmonError

if TYPE_CHECKING:
    from harmon.evaluation.measured import Measured, Plan
    from harmon.evaluation.reported import Evaluation
    from harmon.evaluation.subject import Subject
    from harmon.evaluation.variants import Chosen

_PATH = click.Path(path_type=Path)
_PAIR = "NAME=VALUE"


@click.command(epilog="docs/benchmarks-data.md names the benchmarks and the files that each is read from.")
@click.argument("names", nargs=-1, required=True, metavar="CHECKPOINT BENCHMARK...")
@click.option("--data", "folders", multiple=True, required=True, metavar="[NAME=]FOLDER",
              help="Published files: of one benchmark, of each in a folder of its name, or of NAME.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), help="Only the first items, completed to whole groups.")
@click.option("--variant", "variants", multiple=True, metavar=_PAIR,
              help="As pope=adversarial, mmbench=vanilla, wise=verified, gqa=lmms-eval.")  # fmt: skip
@click.option("-o", "--out", type=_PATH, default=Path("runs/evaluation"), show_default=True, help="Folder to write.")
@click.option("--compare", "other", type=_PATH, metavar="CHECKPOINT", help="Measure a second one on the same items.")
@click.option("--examine", "means", multiple=True, metavar=_PAIR, help="Who looks at pictures: docs/evaluation.md.")
@click.option(
    "--export",
    type=_PATH,
    metavar="DIR",
    help="Also write pictures as the official evaluations read them; a second checkpoint's into DIR/other.",
)
@click.option("--px", type=click.IntRange(1), help="Side of pictures; as the checkpoint's when left out.")
@click.option("--max-new-tokens", default=1024, show_default=True, type=click.IntRange(1), help="Longest answer.")
@click.option("--sampling", multiple=True, metavar=_PAIR, help="How pictures are drawn: ar_steps=64, cfg=3 and so on.")
@click.option("--seed", default=0, show_default=True, help="Of the pictures.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Models at work; over 1, in Ray.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Items that each has at a time.")
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1), help="CPUs of each of several workers."
)
@click.option("--shown", default=6, show_default=True, type=click.IntRange(0), help="Examples of each in the report.")
@click.option("--hashes", type=_PATH, metavar="F.parquet", help="Instead, with a BENCHMARK alone: list its items.")
@click.option("--average", is_flag=True, help="Of CHECKPOINT, a run folder, the averaged weights (training.average).")
@_model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def evaluate(
    names: tuple[str, ...],
    folders: tuple[str, ...],
    variants: tuple[str, ...],
    out: Path,
    other: Path | None,
    export: Path | None,
    hashes: Path | None,
    tokenizer: Path | None,
    vae: Path | None,
    model: str | None,
    average: bool,
    device: str,
    dtype: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure CHECKPOINT on each BENCHMARK, and write report.html and report.json into the folder to write.

    CHECKPOINT is what `harmon generate` takes. Answers, pictures and marks are kept as datasets there: run again,
    nothing is asked or drawn twice. A number over other items than were published is not printed. What --compare names
    is measured with its weights as they are, so a run's average may be compared with the run itself.

    With --hashes: write what BENCHMARK is made of, so that `harmon filter` can keep it out of training data.
    """
    if hashes:
        _list_items(names, folders, hashes, as_json)
        return
    if len(names) < 2:
        raise ConfigurationError("Name a CHECKPOINT and at least one BENCHMARK, or one BENCHMARK with --hashes.")
    from harmon.evaluation.reported import lines, write_evaluation
    from harmon.evaluation.subject import Subject
    from harmon.evaluation.variants import chosen

    asked = chosen(names[1:], _variants(variants))
    places = [_folder(name, one, folders) for name, one in zip(names[1:], asked, strict=True)]
    plan = _plan(out, device, options)
    if other:
        _check_told(plan)
    subjects = [
        Subject(path, _named(tokenizer, vae, model, average and not number), device, dtype)
        for number, path in enumerate(_checkpoints(names[0], other))
    ]
    evaluation = _evaluation(subjects, asked, places, plan)
    if export:
        _export(evaluation.measured, export)
        _export(evaluation.others, export / "other")
    told, page = write_evaluation(evaluation, out)
    if as_json:
        click.echo(json.dumps(evaluation.report() | {"report": str(page)}))
    else:
        click.echo("\n".join([*lines(evaluation.measured), *lines(evaluation.others), str(told), str(page)]))
    if without := evaluation.without_number:
        which = ", ".join(dict.fromkeys(one.chosen.benchmark for one in without))
        raise HarmonError(f"There is no number of {which}; {page} says what is missing.")


def _list_items(names: Sequence[str], folders: Sequence[str], target: Path, as_json: bool) -> None:
    from flows.hash_list import write_hash_list

    if len(names) != 1 or len(folders) != 1:
        raise ConfigurationError("--hashes lists one BENCHMARK of one --data FOLDER; name no checkpoint with it.")
    with shown_progress("items") as progress:
        listed = write_hash_list(names[0], Path(folders[0]), target, progress)
    if as_json:
        told = {"benchmark": names[0], "file": str(target), "items": listed.items, "pictures": listed.pictures}
        click.echo(json.dumps(told))
    else:
        click.echo(f"{target}: {listed.items:,} items of {names[0]} with {listed.pictures:,} different pictures")


def _evaluation(subjects: Sequence[Subject], asked: Sequence[Chosen], places: Sequence[Path], plan: Plan) -> Evaluation:
    from harmon.evaluation.comparison import all_differences
    from harmon.evaluation.measured import measure
    from harmon.evaluation.reported import Evaluation

    found: list[tuple[Measured, ...]] = []
    for subject in subjects:
        found.append(
            tuple(
                measure(subject, one, folder, plan, shown_progress) for one, folder in zip(asked, places, strict=True)
            )
        )
    if len(subjects) == 1:
        return Evaluation(subjects[0], found[0])
    return Evaluation(subjects[0], found[0], subjects[1], found[1], tuple(all_differences(*found)))


def _export(measured: Sequence[Measured], folder: Path) -> None:
    from harmon.evaluation.trees import write_tree

    for one in measured:
        if one.chosen.draws:
            with shown_progress(f"{one.chosen.benchmark}, written") as progress:
                write_tree(one.dataset, folder / one.chosen.benchmark, progress)


def _plan(out: Path, device: str, options: dict[str, Any]) -> Plan:
    from harmon.answering import AnswerConfig
    from harmon.evaluation.crew import Crew
    from harmon.evaluation.examiners import Means
    from harmon.evaluation.measured import Plan
    from pipelines.settings import parse

    sampling = _values("--sampling", options["sampling"])
    if "diffusion_steps" in sampling:
        sampling["diffusion_steps"] = str(sampling["diffusion_steps"])  # 100 as well as "10,5,5"
    gpus = 1.0 if device.startswith("cuda") else 0.0
    return Plan(
        out=out,
        limit=options["limit"],
        px=options["px"],
        answers=AnswerConfig(max_new_tokens=options["max_new_tokens"]),
        sampling=sampling,
        seed=options["seed"],
        crew=Crew(options["workers"], options["batch"], options["threads"], gpus),
        means=parse(Means, _values("--examine", options["means"]), "--examine"),
        shown=options["shown"],
    )


def _check_told(plan: Plan) -> None:
    """Raise ConfigurationError where what was seen of one checkpoint's pictures would be taken for another's, too."""
    for name in ("results", "answers"):
        if getattr(plan.means, name):
            raise ConfigurationError(
                f"--examine {name}=FILE tells of one checkpoint's pictures, and --compare draws those of two; measure "
                "each with its own file, into one folder (-o), without --compare."
            )


def _checkpoints(first: str, other: Path | None) -> list[Path]:
    paths = [Path(first), *([other] if other else [])]
    if absent := [path for path in paths if not path.exists()]:
        raise ConfigurationError(
            f"There is no checkpoint {absent[0]}; name a run folder, a Hugging Face folder or a .pth file."
        )
    return paths


def _folder(name: str, one: Chosen, folders: Sequence[str]) -> Path:
    """Where the published files of a benchmark lie: as named for it, in a folder of its name, or in the only one."""
    general = [folder for folder in folders if "=" not in folder]
    for folder in folders:
        asked, found, path = folder.partition("=")
        if found and asked in (name, one.benchmark):
            return Path(path)
    if len(general) != 1:
        raise ConfigurationError(
            f"--data names no folder for {name}: give --data FOLDER once, or --data {name}=FOLDER."
        )
    inside = [Path(general[0]) / part for part in (name, one.benchmark)]
    return next((path for path in inside if path.is_dir()), Path(general[0]))


def _variants(given: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not value:
            raise ConfigurationError(f"--variant {one}: write it as {_PAIR}.")
        found.setdefault(name, []).append(value)
    return found


def _values(option: str, given: Sequence[str]) -> dict[str, Any]:
    from pipelines.settings import with_override

    values: dict[str, Any] = {}
    for one in given:
        with_override(values, one, option)
    return values
