"""The deployments on a real Prefect server, on SQLite and PostgreSQL, run by a real worker: with HARMON_SOAK."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.flows.deploying import deploy_each
from tests.flows.postgres import PROGRAMS, postgres
from tests.flows.prefect_api import Api
from tests.flows.prefect_process import prefect_server_process, worker_process
from tests.flows.small_run import RECIPE
from tests.harmon.miniature import make_corpus

DATABASES = ["sqlite", "postgresql"]
pytestmark = pytest.mark.skipif(not os.environ.get("HARMON_SOAK"), reason="minutes on a busy machine; HARMON_SOAK=1")
FLOWS = {"run", "download", "recaption", "filter", "train", "evaluate", "audit"}


@dataclass(frozen=True)
class Site:
    """A server with what was deployed there, a worker's log, and the folder flows run in."""

    api: Api
    folder: Path
    deployed: list[dict[str, Any]]

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()


@pytest.fixture(scope="module", params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as opened:
        settings = {}
        if request.param == "postgresql":
            if not PROGRAMS:
                pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
            settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = opened.enter_context(postgres())
        address = opened.enter_context(prefect_server_process(folder, **settings))
        recipe = str(RECIPE)
        told = deploy_each(
            address, folder,
            [recipe, "--dry-run"], [recipe], [recipe],
            [recipe, "--nightly", "0 4 * * *", "--gpu-runs", "2", "--most-hours", "5"],
            [recipe, "--gpu-runs", "2"],
        )  # fmt: skip
        opened.enter_context(worker_process(folder, address))
        yield Site(Api(address), folder, told)


def done(told: dict[str, Any]) -> dict[str, str]:
    """What was done to each thing that was not as it should be."""
    return {one["name"]: one["done"] for one in told["changes"] if one["done"] != "unchanged"}


@pytest.mark.slow
def test_deployed_again_nothing_changes_and_what_is_asked_otherwise_is_told(site: Site) -> None:
    dry, first, again, other, back = site.deployed
    assert done(dry) == done(first) and set(done(first).values()) == {"new"}
    assert {name for name in done(first) if name.startswith("harmon-")} == {
        *(f"harmon-{flow}/any" for flow in FLOWS),
        *(f"harmon-{flow}/demo" for flow in ("run", "train", "audit")),
    }
    assert done(again) == {}
    assert done(other) == {
        "harmon/gpu": "changed",
        "harmon-audit/demo": "changed",
        "harmon: a run holds GPUs for too long": "new",
    }
    told = {one["name"]: one["differences"] for one in other["changes"]}
    assert told["harmon/gpu"] == ["concurrency_limit: 2, was 1"]
    assert told["harmon-audit/demo"] == ["schedules.0.schedule.cron: '0 4 * * *', was '0 3 * * *'"]
    assert done(back) == {"harmon-audit/demo": "changed", "harmon: a run holds GPUs for too long": "removed"}


@pytest.mark.slow
def test_every_parameter_is_typed_and_told_and_wrong_ones_are_refused(site: Site) -> None:
    for flow in FLOWS:
        deployment = site.api.get(f"/deployments/name/harmon-{flow}/any")
        assert deployment["description"] and deployment["work_pool_name"] == "harmon"
        for name, field in deployment["parameter_openapi_schema"]["properties"].items():
            assert field["title"][0].isupper() and field["description"], (flow, name)
            assert {"type", "anyOf", "enum"} & set(field), (flow, name)
    audit = site.api.get("/deployments/name/harmon-audit/demo")
    assert audit["parameters"] == {"recipe": str(RECIPE)}
    assert [one["schedule"]["cron"] for one in audit["schedules"]] == ["0 3 * * *"]
    with pytest.raises(AssertionError, match=r"stop_after|not valid under"):
        site.api.start("harmon-train/any", {"recipe": "r.yaml", "stage": "stage1", "stop_after": "soon"})


@pytest.mark.slow
def test_a_flow_run_does_what_the_command_does_and_shows_it(site: Site) -> None:
    make_corpus(site.folder / "corpus")
    sound = site.api.start("harmon-audit/any", {"datasets": ["corpus"]})
    wrong = site.api.start("harmon-audit/any", {"datasets": ["--history"]})  # a name, and never an option
    site.api.wait(sound, "COMPLETED", log=site.log)
    table = site.api.artifacts(sound)["result-audit"]["data"]
    assert '"sound"' in table
    state = site.api.wait(wrong, "FAILED", log=site.log)
    assert "--history" in state["message"] and "Traceback" not in "".join(site.api.logs(wrong))


@pytest.mark.slow
def test_a_gate_suspends_the_flow_run_until_a_person_resumes_it(site: Site) -> None:
    flow = site.api.post("/flows/", name="harmon-gated")["id"]
    site.api.post(
        "/deployments/", name="test", flow_id=flow, entrypoint="tests.flows.gated_flow.gated", work_pool_name="harmon",
        work_queue_name="gpu", tags=["harmon", "gpu"],
    )  # fmt: skip
    run = site.api.start("harmon-gated/test", {"folder": str(site.folder)})
    assert site.api.wait(run, "PAUSED", log=site.log)["name"] == "Suspended"
    assert (site.folder / "before").exists() and not (site.folder / "gate").exists()
    site.api.post(f"/flow_runs/{run}/resume")
    site.api.wait(run, "COMPLETED", log=site.log)
    assert [(site.folder / name).read_text() for name in ("before", "gate", "after")] == ["done\n"] * 3
