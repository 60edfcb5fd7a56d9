"""`harmon deploy`: what is to stand on a Prefect server so that a team can run the flows from its UI, and putting it
there. Done again, it changes nothing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from flows.deploy_automations import automations
from flows.deploy_server import SCHEDULES, Change, Kind, Server, Thing
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import Settings, read_yaml

TAG = "harmon"
GPU, DATA = "gpu", "data"  # queues of the pool, and tags
QUEUES = {"run": GPU, "train": GPU, "recaption": GPU, "evaluate": GPU, "download": DATA, "filter": DATA, "audit": DATA}
"""Every flow, and the queue that its runs wait in."""
OF_A_RECIPE = ("run", "train", "audit")
FUNCTIONS = {"filter": "filter_rows"}
POOLS = Path(__file__).parent / "pools"
LOGGERS = "flows,pipelines,recaption,filtering,harmon"  # whose lines the UI shows, too


class Deploying(Settings):
    """How the flows are to run."""

    recipes: tuple[Path, ...] = ()
    """Recipe files, as named from the folder that flows run in: each gets deployments of its own."""
    pool: str = Field("harmon", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    kind: Literal["process", "kubernetes"] = "process"
    folder: Path
    """Where a process worker runs the flows."""
    image: str | None = None
    namespace: str = "harmon"
    claim: str = "runs"
    service_account: str = "harmon-flows"
    gpu_runs: int = Field(1, ge=1)
    """Flow runs that may hold GPUs at a time."""
    nightly: str = "0 3 * * *"
    timezone: str = "UTC"
    heartbeat_seconds: int = Field(60, ge=30)
    """From one sign of life of a flow run to the next; three that are missing make a zombie."""
    still_minutes: float = Field(60.0, gt=0)
    """For which a flow run may show no progress before somebody is told."""
    most_hours: float | None = Field(None, gt=0)
    """After which a flow run that may hold GPUs is cancelled."""
    notify: str | None = None
    """Block of the server that tells people, as slack-webhook/ops."""

    @model_validator(mode="after")
    def _has_an_image(self) -> Self:
        if (self.kind == "kubernetes") != (self.image is not None):
            raise ValueError("a Kubernetes pool needs an image, and a process pool has none")
        return self


@dataclass(frozen=True)
class Deployed:
    """What `harmon deploy` did."""

    server: str
    changes: tuple[Change, ...]
    dry: bool

    @property
    def changed(self) -> tuple[Change, ...]:
        """Without what stood already."""
        return tuple(one for one in self.changes if one.done != "unchanged")

    def to_json(self) -> dict[str, Any]:
        """As `harmon deploy --json` prints it."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """As `harmon deploy` prints it."""
        yield from (one.line() for one in self.changed)
        same = len(self.changes) - len(self.changed)
        if not self.changed:
            yield f"{self.server}: nothing was to change; all {same} things stand as they should."
        else:
            would = "would be" if self.dry else "were"
            yield f"{self.server}: {len(self.changed)} things {would} made or changed, {same} stand as they should."


def deploy(asked: Deploying, dry: bool = False) -> Deployed:
    """Register every flow with the Prefect server that PREFECT_API_URL, or the profile, names.

    Raises:
        ConfigurationError: none is named, a recipe is wrong, or --notify names no block.
        HarmonError: it does not answer, or refuses.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigurationError(
            "No Prefect server is named; start one with `prefect server start`, and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api."
        )
    try:
        with get_client(sync_client=True) as client:
            server = Server(client)
            block = server.block_identity(asked.notify) if asked.notify else None
            return Deployed(str(url), tuple(server.put(thing, dry) for thing in things(asked, block)), dry)
    except httpx.TransportError as error:
        raise HarmonError(
            f"No Prefect server answers at {url} ({error}); start one, or name it in PREFECT_API_URL."
        ) from None


def things(asked: Deploying, block: str | None) -> Iterator[Thing]:
    """Everything that is to stand, each after what it needs. `block` is the identity of what tells people."""
    yield _thing("work pool", asked.pool, type=asked.kind, base_job_template=job_template(asked),
                 description="Where the flows of harmon run.")  # fmt: skip
    yield _thing("work queue", f"{asked.pool}/{GPU}", concurrency_limit=asked.gpu_runs, priority=1,
                 description="Flow runs that may hold GPUs.")  # fmt: skip
    yield _thing("work queue", f"{asked.pool}/{DATA}", priority=2, description="Flow runs that need no GPU.")
    for flow in QUEUES:
        yield _deployment(asked, flow)
    if asked.recipes:
        from flows.recipe import load_recipe  # with the parts of a training, whose import takes seconds
    for recipe in asked.recipes:
        name = load_recipe(asked.folder / recipe).name
        for flow in OF_A_RECIPE:
            yield _deployment(asked, flow, name, str(recipe))
    yield from automations(asked.heartbeat_seconds, asked.still_minutes, asked.most_hours, block)


def job_template(asked: Deploying) -> dict[str, Any]:
    """The pool's base job template, with this deployment's defaults."""
    template = read_yaml(POOLS / f"{asked.kind}.yaml")
    of_kubernetes = {
        "image": asked.image,
        "namespace": asked.namespace,
        "claim": asked.claim,
        "service_account_name": asked.service_account,
    }
    given = of_kubernetes if asked.kind == "kubernetes" else {"working_dir": str(asked.folder)}
    variables: dict[str, Any] = template["variables"]["properties"]
    for name, value in given.items():
        variables[name]["default"] = value
    variables["env"]["default"] = {
        "PREFECT_LOGGING_EXTRA_LOGGERS": LOGGERS,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(asked.heartbeat_seconds),
    }
    return template


def _deployment(asked: Deploying, flow: str, name: str = "any", recipe: str | None = None) -> Thing:
    nightly = flow == "audit" and recipe is not None
    schedule = {"slug": "nightly", "active": True, "schedule": {"cron": asked.nightly, "timezone": asked.timezone}}
    described, schema = _told(flow)
    return _thing(
        "deployment",
        f"harmon-{flow}/{name}",
        description=described,
        tags=sorted({TAG, QUEUES[flow], *([name] if recipe else [])}),
        entrypoint=f"flows.deployed.{FUNCTIONS.get(flow, flow)}",
        parameters={"recipe": recipe} if recipe else {},
        parameter_openapi_schema=schema,
        enforce_parameter_schema=True,
        work_pool_name=asked.pool,
        work_queue_name=QUEUES[flow],
        **{SCHEDULES: [schedule] if nightly else []},
    )


def _told(flow: str) -> tuple[str, dict[str, Any]]:
    """What the flow does, and the form of its parameters, as the UI shows them."""
    import inspect

    from prefect.utilities.callables import parameter_schema

    from flows import deployed

    function = getattr(deployed, FUNCTIONS.get(flow, flow)).fn
    schema = json.loads(parameter_schema(function).model_dump_json())
    for name, field in schema["properties"].items():
        field["title"] = name.replace("_", " ").capitalize()
        field["description"] = " ".join(field["description"].split())
    text = inspect.cleandoc(function.__doc__).partition("\n\nArgs:")[0]
    return " ".join(text.split()), schema


def _thing(kind: Kind, name: str, **wanted: Any) -> Thing:
    short = name if kind == "work pool" else name.partition("/")[2]
    return Thing(kind, name, {"name": short, **wanted})


def recipes_named(given: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Recipe files as flows name them: from `folder`, where they are below it."""
    whole = [path.absolute() for path in given]
    return tuple(path.relative_to(folder) if path.is_relative_to(folder) else path for path in whole)
