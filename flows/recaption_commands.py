"""The command that has captions written, or says what that would take. Nothing heavy is imported until it runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.terminal import announce
from pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from pipelines.steps import Progress
    from recaption.engines import EngineSettings
    from recaption.estimate import Estimate
    from recaption.language_model import LanguageModel

_ENGINES = click.Choice(["transformers", "vllm", "vllm-offline"])
_ONLY = click.Choice(["missing", "failed", "flagged", "changed", "all"])


@click.command()
@click.argument("dataset")
@click.option("--prompt", required=True, metavar="VERSION", help="Such as rewrite-v1, or a file PATH/VERSION.yaml.")
@click.option(
    "--model", metavar="FOLDER|NAME", help="The model's folder; with --endpoint, the name it is served under."
)
@click.option("--revision", default="", help="With --model NAME: which version of that model the servers have.")
@click.option("--engine", type=_ENGINES, help="vllm where --endpoint is given, else transformers.")
@click.option("--endpoint", "endpoints", multiple=True, metavar="URL", help="A vLLM server that runs; may be repeated.")
@click.option("--concurrency", default=640, show_default=True, help="Most requests in flight at one endpoint.")
@click.option("--deadline", default=600.0, show_default=True, help="Seconds that one reply may take.")
@click.option("--only", type=_ONLY, default="missing", show_default=True, help="Which rows, by what stands of them.")
@click.option("--base", metavar="GROUP", help="Caption group that stands for all other rows; the newest if left out.")
@click.option("--where", metavar="SQL", help="Rows that fulfil this condition over the columns.")
@click.option("--limit", type=click.IntRange(min=1), help="The first so many of them.")
@click.option("--sample", metavar="SHARE", help="This share of all rows, such as 1%; always the same ones.")
@click.option("--reuse", multiple=True, metavar="DATASET", help="Its captions answer identical work; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Ask 200 rows, keep nothing, and say what all would take.")
@click.option("--actors", default=1, show_default=True, help="With --engine vllm-offline: Ray actors.")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs of a model started here; with --dry-run, that answer.")
@click.option("--gpu-price", type=float, help="With --dry-run: price of a GPU-hour.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def recaption(
    dataset: str,
    prompt: str,
    model: str | None,
    revision: str,
    engine: str | None,
    endpoints: tuple[str, ...],
    concurrency: int,
    deadline: float,
    only: Any,
    base: str | None,
    where: str | None,
    limit: int | None,
    sample: str | None,
    reuse: tuple[str, ...],
    dry_run: bool,
    actors: int,
    gpus: int | None,
    gpu_price: float | None,
    as_json: bool,
) -> None:
    """Have a model write captions for DATASET, as a new column group; what stands already is not asked again."""
    from pipelines.dataset import Dataset
    from recaption.captions import write_captions
    from recaption.choice import Choice
    from recaption.engines import EngineSettings, open_engine
    from recaption.recaption import Recaption, with_base
    from recaption.rows import Rows

    target, others = Dataset(dataset), [Dataset(one) for one in reuse]
    if target.head is None:
        raise ConfigurationError(f"There is no dataset at {dataset}; name one that has been downloaded.")
    language, settings = _model_and_engine(model, revision, engine, endpoints)
    how = {"concurrency": concurrency, "deadline_seconds": deadline, "actors": actors, "gpus": gpus or 0}
    settings = EngineSettings.model_validate(settings.model_dump() | how)
    rows = Rows(only=only, where=where, limit=limit, sample=_share(sample), base=base)
    asked = with_base(Recaption(_prompt(prompt), language, rows), target)
    if asked.rows.base and not dry_run and not Choice(target, asked).any():
        said = {"group": asked.rows.base, "commit": None, "rows": target.total_rows, "captions": None}
        click.echo(json.dumps(said) if as_json else f"Nothing is to ask: no row of {asked.rows.base} is {only}.")
        return
    log = Path("runs") / "logs" / "vllm.log"
    if dry_run:
        on = settings.gpus_used(gpus)
        told = _estimate(target, asked, others, lambda: open_engine(settings, language, log), on, gpu_price)
        click.echo(json.dumps(told.to_json()) if as_json else "\n".join(told.lines()))
        return
    commit = write_captions(target, asked, lambda: open_engine(settings, language, log), _say, others)
    said = {"group": asked.group, "commit": commit.number, "rows": commit.rows_in, "captions": commit.rows_out}
    if as_json:
        click.echo(json.dumps(said | {"failed": dict(commit.failed)}))
        return
    failed = ", ".join(f"{number:,} {reason}" for reason, number in commit.failed.items())
    click.echo(
        f"{commit.rows_out:,} of {commit.rows_in:,} rows have a caption in {asked.group}; {failed or 'none failed'}"
    )


def _prompt(version: str) -> Any:
    from recaption.prompt import load_prompt

    if version.endswith(".yaml"):
        return load_prompt(Path(version).stem, Path(version).parent)
    return load_prompt(version)


def _model_and_engine(
    model: str | None, revision: str, engine: str | None, endpoints: tuple[str, ...]
) -> tuple["LanguageModel", "EngineSettings"]:
    """A folder is the model itself, and known by its files; any other name is one that the endpoints serve."""
    from recaption.engines import EngineSettings
    from recaption.language_model import language_model, served_model

    if model is None:
        raise ConfigurationError("--model: name the model's folder, or with --endpoint the name it is served under.")
    if endpoints and engine not in (None, "vllm"):
        raise ConfigurationError(f"--endpoint belongs to --engine vllm, not to {engine}; leave one of them out.")
    chosen: Any = engine or ("vllm" if endpoints else "transformers")
    settings = EngineSettings(engine=chosen, endpoints=endpoints)
    if Path(model).is_dir():
        return language_model(model), settings
    if not endpoints:
        raise ConfigurationError(f"--model {model} is no folder; name one, or servers of that model with --endpoint.")
    return served_model(model, revision), settings.model_copy(update={"served_model": model})


def _share(text: str | None) -> float | None:
    """1% or 0.01. Raises ConfigurationError for anything that is not over 0 and at most all."""
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigurationError(f"--sample {text}: write a share of the rows, such as 1% or 0.01.")
    return share


def _estimate(
    dataset: Any, asked: Any, reuse: list[Any], open_it: Callable[[], Any], gpus: float, price: float | None
) -> "Estimate":
    from recaption.estimate import count, estimate, measure, nothing

    counts = count(dataset, asked, reuse)
    if not counts.requests:
        return nothing(counts)
    with open_it() as engine:
        return estimate(counts, measure(dataset, asked, counts, engine), gpus, price)


def _say(now: "Progress") -> None:
    """Progress on stderr, which leaves stdout to the result."""
    click.echo(f"{now.shards_done:,} of {now.shards_total:,} shards, {now.rows_done:,} rows", err=True)
    announce(f"{now.dataset}, shards", now.shards_done, now.shards_total)
