"""`harmon deploy`, which registers the flows with a Prefect server. Nothing heavy is imported until it runs."""

import json
from pathlib import Path
from typing import Any

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("recipes", nargs=-1, type=_PATH, metavar="[RECIPE...]")
@click.option("--pool", default="harmon", show_default=True, help="Work pool that the flows run in.")
@click.option("--kind", type=click.Choice(["process", "kubernetes"]), default="process", show_default=True,
              help="What its workers start: processes beside them, or Kubernetes jobs.")  # fmt: skip
@click.option("--folder", type=_PATH, help="Folder that process workers run flows in; this one if left out.")
@click.option("--image", help="With --kind kubernetes: image of a flow run's pod.")
@click.option("--namespace", default="harmon", show_default=True, help="With --kind kubernetes: of the jobs.")
@click.option("--claim", default="runs", show_default=True, help="With --kind kubernetes: shared volume's claim.")
@click.option("--service-account", default="harmon-flows", show_default=True, help="With --kind kubernetes: the pods'.")
@click.option("--gpu-runs", default=1, show_default=True, help="Flow runs that may hold GPUs at a time.")
@click.option("--nightly", default="0 3 * * *", show_default=True, metavar="CRON", help="When datasets are audited.")
@click.option("--timezone", default="UTC", show_default=True, help="That --nightly is meant in.")
@click.option("--heartbeat-seconds", default=60, show_default=True, help="From one sign of life of a run to the next.")
@click.option("--still-minutes", default=60.0, show_default=True, help="Without progress before somebody is told.")
@click.option("--most-hours", type=float, help="Cancel a run that may hold GPUs after so long; never if left out.")
@click.option("--notify", metavar="TYPE/NAME", help="Block of the server that tells people, as slack-webhook/ops.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def deploy(recipes: tuple[Path, ...], folder: Path | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Register the flows with the Prefect server of PREFECT_API_URL: pool, queues, deployments, automations.

    Each RECIPE gets deployments of its own, and a nightly audit of its datasets. Done again, it changes nothing; what
    a person set in the UI beside it stays.
    """
    from flows.deploy import Deploying, recipes_named
    from flows.deploy import deploy as put
    from pipelines.settings import parse

    place = (folder or Path.cwd()).absolute()
    given = {name: value for name, value in options.items() if value is not None}
    asked = parse(Deploying, {**given, "folder": place, "recipes": recipes_named(recipes, place)}, "harmon deploy")
    done = put(asked, dry_run)
    click.echo(json.dumps(done.to_json()) if as_json else "\n".join(done.lines()))
