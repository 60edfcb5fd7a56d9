"""A plan as a person reads it, and as JSON: no number without what it rests on."""

from collections.abc import Iterator
from typing import Any

from flows.plan.paper import implied
from flows.plan.plan import Plan, PlannedStep

UTILISATIONS = (0.1, 0.2, 0.3, 0.4, 0.5)


def duration(seconds: float | None) -> str:
    """In the unit that reads best."""
    if seconds is None:
        return "unknown"
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def size(bytes_: float) -> str:
    """In decimal units."""
    for one, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if bytes_ >= one:
            return f"{bytes_ / one:,.1f} {unit}"
    return f"{bytes_ / 1e3:,.1f} kB"


def lines(plan: Plan) -> Iterator[str]:
    """As `harmon plan` prints it."""
    yield f"{plan.recipe}: an estimate; below each step stands what it rests on"
    for step in plan.steps:
        yield from _step(plan, step)
    yield from _sums(plan)
    if plan.where == "cuda":
        yield from _utilisation(plan)
        yield from _prices(plan)


def _step(plan: Plan, step: PlannedStep) -> Iterator[str]:
    draft, rate = step.draft, step.rate
    told = [f"{draft.samples:,} samples", f"{size(draft.bytes)} left", duration(step.seconds)]
    told += [f"{step.gpu_hours:,.1f} GPU-hours"] if step.gpu else []
    told += [f"{step.usd:,.2f} USD"] if plan.where == "cuda" else []
    yield f"{step.name}: " + ("done; it took or would take " if step.done else "") + ", ".join(told)
    yield f"    {draft.amount:,.4g} {draft.unit}: {draft.basis}"
    worker = "GPU" if step.gpu else "machine"
    if rate is None:
        yield "    no rate is known: run it once and `harmon plan RECIPE --actual RUN`, or plan for GPUs with --gpus"
    elif rate.seconds:
        each = f"{step.workers} {worker}{'s' if step.workers > 1 else ''}"
        yield f"    {1 / rate.seconds:,.4g} {draft.unit}/s a {worker}, {each}; {rate.source}"
    if draft.kind == "train" and plan.where == "cuda":
        yield from (f"    {line}" for line in plan.forecasts[draft.name.partition(":")[2]].layout_lines())


def _sums(plan: Plan) -> Iterator[str]:
    done = len(plan.steps) - len(plan.left)
    unknown = f", without {', '.join(plan.unknown)}, whose rate nobody knows" if plan.unknown else ""
    yield (
        f"sum{f' of what is left ({done} steps are done)' if done else ''}: {duration(plan.seconds)} one step after "
        f"another, as `harmon run` does them; {plan.gpu_hours:,.1f} GPU-hours; "
        + (f"{plan.usd:,.2f} USD" if plan.where == "cuda" else "no money: this machine")
        + unknown
    )
    month = f"; {plan.usd_per_month:,.2f} USD a month" if plan.where == "cuda" else ""
    yield f"storage: {size(plan.bytes)} when all is done{month}; deleted landing files and old checkpoints not counted"
    way, seconds = plan.critical_path()
    if way:
        yield f"critical path: {duration(seconds)}: {' > '.join(way)} (as if all other steps ran beside it)"


def _utilisation(plan: Plan) -> Iterator[str]:
    rented = plan.prices.instances[plan.rented[0]]
    yield f"training, {plan.train_flops():.3g} FLOP as this system computes it, by share of the {rented.gpu}'s peak:"
    known = [(share, "") for share in UTILISATIONS]
    known += [(one.utilisation, f"  the paper's {one.model}, derived") for one in implied()]
    for share, said in sorted(known):
        yield f"    {share:6.1%}: {plan.gpu_hours_at(share):,.0f} GPU-hours{said}"
    for one in implied():
        yield f"    {one.line()}"


def _prices(plan: Plan) -> Iterator[str]:
    yield "prices, from a file that you may edit (--prices); list prices, without discounts, traffic and idle machines:"
    for name in dict.fromkeys(plan.rented):
        one = plan.prices.instances[name]
        yield f"    {name}: {one.usd_per_hour:,.2f} USD an hour; {one.source} (known as of {one.date})"
    name = plan.prices.defaults.storage
    kept = plan.prices.storage[name]
    yield f"    {name}: {kept.usd_per_gb_month:g} USD a GB and month; {kept.source} (known as of {kept.date})"


def to_json(plan: Plan) -> dict[str, Any]:
    """As `harmon plan --json` prints it."""
    way, seconds = plan.critical_path()
    return {
        "recipe": plan.recipe,
        "where": plan.where,
        "steps": [_row(step) for step in plan.steps],
        "seconds": plan.seconds,
        "gpu_hours": plan.gpu_hours,
        "usd": plan.usd,
        "bytes": plan.bytes,
        "usd_per_month": plan.usd_per_month,
        "unknown": plan.unknown,
        "critical_path": {"steps": way, "seconds": seconds},
        "train_flops": plan.train_flops(),
        "gpu_hours_at": {f"{share:g}": plan.gpu_hours_at(share) for share in UTILISATIONS},
        "paper": [
            {"model": one.model, "utilisation": one.utilisation, "flops": one.flops, "derived": True}
            for one in implied()
        ],
        "prices": plan.prices.model_dump(mode="json"),
    }


def _row(step: PlannedStep) -> dict[str, Any]:
    draft, rate = step.draft, step.rate
    return {
        "step": step.name,
        "done": step.done,
        "samples": draft.samples,
        "bytes": draft.bytes,
        "amount": draft.amount,
        "unit": draft.unit,
        "basis": draft.basis,
        "after": list(draft.after),
        "seconds_per_unit": None if rate is None else rate.seconds,
        "rate_from": None if rate is None else rate.source,
        "learned": None if rate is None else rate.learned,
        "workers": step.workers,
        "gpu": step.gpu,
        "seconds": step.seconds,
        "gpu_hours": step.gpu_hours,
        "usd": step.usd,
    }
