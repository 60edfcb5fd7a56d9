"""The commands that say what a recipe takes: plan, simulate. Nothing heavy is imported until one runs."""

import json
from pathlib import Path

import click

from pipelines.errors import ConfigurationError

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("recipe", type=_PATH)
@click.option("--gpus", type=click.IntRange(1), help="As if on so many GPUs; left out: as the recipe says.")
@click.option("--machines", type=click.IntRange(1), default=1, show_default=True, help="Without GPUs, for data work.")
@click.option("--gpu-instance", metavar="NAME", help="Of the prices; left out: their default.")
@click.option("--cpu-instance", metavar="NAME", help="Of the prices; left out: their default.")
@click.option("--gpu-price", type=click.FloatRange(min=0), help="Price of a GPU-hour, in place of the instance's.")
@click.option("--prices", type=_PATH, metavar="FILE", help="In place of infra/prices.yaml.")
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Share of the peak rate that training reaches.")
@click.option("--rows", multiple=True, metavar="SOURCE=COUNT", help="Rows of a source, if its entry is not believed.")
@click.option("--kept", multiple=True, metavar="SET=SHARE", help="Share of its sources that a training set keeps.")
@click.option("--rates", type=_PATH, default=Path("runs/rates.json"), show_default=True, help="File of learned rates.")
@click.option(
    "--actual", type=_PATH, metavar="RUN", help="Set a finished run beside its estimate, and learn its rates."
)
@click.option("--ask", is_flag=True, help="Ask the language model 200 rows of each rewriting now, and tell from them.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override path.to.key of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def plan(
    recipe: Path,
    gpus: int | None,
    machines: int,
    gpu_instance: str | None,
    cpu_instance: str | None,
    gpu_price: float | None,
    prices: Path | None,
    mfu: float | None,
    rows: tuple[str, ...],
    kept: tuple[str, ...],
    rates: Path,
    actual: Path | None,
    ask: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what each step of RECIPE takes: samples, bytes, time, GPU-hours, money, and what that rests on."""
    from flows.plan.actual import actual as compared
    from flows.plan.asked import ask_rewriting
    from flows.plan.plan import Means
    from flows.plan.plan import plan as planned
    from flows.plan.told import lines, to_json
    from flows.recipe import load_recipe

    if actual and ask:
        raise ConfigurationError("--actual looks back and --ask ahead; leave one of them out.")
    means = Means(
        gpus=gpus,
        machines=machines,
        gpu_instance=gpu_instance,
        cpu_instance=cpu_instance,
        gpu_hour_price=gpu_price,
        mfu=mfu,
        rows={name: round(number) for name, number in _pairs("--rows", rows).items()},
        kept=_pairs("--kept", kept),
        prices=prices,
        learned=rates,
    )
    read = load_recipe(recipe, settings)
    if actual:
        found = compared(read, actual, means)
        click.echo(json.dumps(found.to_json()) if as_json else "\n".join(found.lines()))
        return
    told = planned(read, means)
    asked = ask_rewriting(read, gpus, gpu_price) if ask else None
    if as_json:
        click.echo(json.dumps(to_json(told) | ({"asked": asked.to_json()} if asked else {})))
        return
    click.echo("\n".join([*lines(told), *(asked.lines() if asked else ())]))


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, float]:
    """NAME=NUMBER of an option that may be repeated. Raises ConfigurationError for anything else."""
    found: dict[str, float] = {}
    for one in given:
        name, _, number = one.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise ConfigurationError(f"{option} {one}: write it as NAME=NUMBER.") from None
        if found[name] <= 0 or (option == "--kept" and found[name] > 1):
            raise ConfigurationError(
                f"{option} {one}: the number must be over 0" + (" and at most 1." if option == "--kept" else ".")
            )
    return found


@click.command()
@click.argument("recipe", type=_PATH)
@click.option("--nodes", type=click.IntRange(1, 10_000), required=True, help="Machines; of GPU steps, GPU instances.")
@click.option("--images", metavar="COUNT", help="Such as 50M or 1B; left out: as the recipe's sources have.")
@click.option(
    "--mtbf", type=click.FloatRange(0, min_open=True), help="Mean hours between a node's failures; none fail."
)
@click.option("--repair", default=600.0, show_default=True, help="Seconds until a failed node is replaced.")
@click.option("--checkpoint-every", default=1800.0, show_default=True, help="Seconds of training between checkpoints.")
@click.option("--checkpoint-seconds", default=5.0, show_default=True, help="That training stands still for one.")
@click.option("--restart", default=300.0, show_default=True, help="Seconds from all nodes to the first train step.")
@click.option("--seed", default=0, show_default=True, help="Of the failures: the same seed, the same failures.")
@click.option("--gpu-instance", metavar="NAME", help="Of the prices; left out: their default.")
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Share of the peak rate that training reaches.")
@click.option("--rows", multiple=True, metavar="SOURCE=COUNT", help="Rows of a source, if its entry is not believed.")
@click.option("--rates", type=_PATH, default=Path("runs/rates.json"), show_default=True, help="File of learned rates.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override path.to.key of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def simulate(
    recipe: Path,
    nodes: int,
    images: str | None,
    mtbf: float | None,
    repair: float,
    checkpoint_every: float,
    checkpoint_seconds: float,
    restart: float,
    seed: int,
    gpu_instance: str | None,
    mfu: float | None,
    rows: tuple[str, ...],
    rates: Path,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Replay RECIPE on machines that fail, and say where the time goes. Nothing is run.

    Its steps take what `harmon plan` says of their work. A data step's shards are taken by whichever node is
    free, and again where the node fails; training goes on from its last checkpoint.
    """
    from flows.plan.plan import Means
    from flows.plan.plan import plan as planned
    from flows.plan.replay import replay
    from flows.plan.simulation import Cluster, Training
    from flows.recipe import load_recipe

    for option, value in (("--repair", repair), ("--checkpoint-seconds", checkpoint_seconds), ("--restart", restart)):
        if value < 0:
            raise ConfigurationError(f"{option} {value:g}: seconds are 0 or more.")
    if checkpoint_every <= 0:
        raise ConfigurationError(f"--checkpoint-every {checkpoint_every:g}: seconds are over 0.")
    stated = {name: round(number) for name, number in _pairs("--rows", rows).items()}
    means = Means(gpu_instance=gpu_instance, mfu=mfu, rows=stated, learned=rates)
    told = replay(
        planned(load_recipe(recipe, settings), means, look=False),
        None if images is None else _count(images),
        Cluster(nodes, mtbf, repair, seed),
        Training(checkpoint_every, checkpoint_seconds, restart),
    )
    click.echo(json.dumps(told.to_json()) if as_json else "\n".join(told.lines()))


def _count(text: str) -> int:
    """50M, 1B, 20000. Raises ConfigurationError for anything that is not over 0 and at most ten billion."""
    units = {"K": 10**3, "M": 10**6, "B": 10**9}
    unit = units.get(text[-1:].upper(), 1)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        number = 0.0
    if not 1 <= number <= 1e10:
        raise ConfigurationError(f"--images {text}: write a number such as 50M or 1B, at most 10B.")
    return round(number)
