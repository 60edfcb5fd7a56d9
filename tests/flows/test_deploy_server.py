"""What differs between what stands on a server and what is wanted there, what the automations watch, and the pools."""

import re
from pathlib import Path

import pytest

from flows.deploy import Deploying, job_template, recipes_named
from flows.deploy_automations import CEILING, automations
from flows.deploy_server import Change, differences
from pipelines.errors import ConfigurationError
from pipelines.settings import parse


def test_only_what_is_wanted_is_compared_and_words_are_sets() -> None:
    present = {"name": "a", "tags": ["gpu", "harmon"], "schedules": [{"id": 1, "schedule": {"cron": "0 3 * * *"}}]}
    assert not list(
        differences(present, {"tags": ["harmon", "gpu"], "schedules": [{"schedule": {"cron": "0 3 * * *"}}]})
    )
    assert list(differences(present, {"schedules": [{"schedule": {"cron": "0 4 * * *"}}]})) == [
        "schedules.0.schedule.cron: '0 4 * * *', was '0 3 * * *'"
    ]
    assert list(differences(present, {"schedules": []})) == ["schedules: 0 in place of 1"]
    assert list(differences(present, {"paused": False})) == ["paused: False, was None"]


def test_a_change_says_what_it_changed() -> None:
    change = Change("deployment", "harmon-run/demo", "changed", ("tags: ['a'], was ['b']",))
    assert change.line().splitlines() == [
        "changed   deployment harmon-run/demo",
        "            tags: ['a'], was ['b']",
    ]


def test_a_zombie_is_one_whose_heartbeats_stopped_before_it_ended_or_was_suspended() -> None:
    zombie = next(one for one in automations(60, 60.0, None, None) if "zombie" in one.name)
    trigger = zombie.wanted["trigger"]
    assert trigger["after"] == ["prefect.flow-run.heartbeat"] and trigger["within"] == 180.0
    assert {"prefect.flow-run.heartbeat", "prefect.flow-run.Completed", "prefect.flow-run.Suspended"} <= set(
        trigger["expect"]
    )
    assert zombie.wanted["actions"][0]["state"] == "CRASHED"


def test_without_a_ceiling_of_hours_its_automation_is_not_to_stand() -> None:
    ceilings = [next(one for one in automations(60, 60.0, hours, None) if one.name == CEILING) for hours in (None, 1.5)]
    assert ceilings[0].wanted is None
    assert ceilings[1].wanted["trigger"]["within"] == 5400.0
    assert ceilings[1].wanted["actions"] == [{"type": "cancel-flow-run"}]


def test_a_block_that_tells_people_is_used_by_what_only_tells() -> None:
    kinds = {one.name: one.wanted["actions"][0]["type"] for one in automations(60, 60.0, 1.0, "an-identity")}
    assert kinds == {
        "harmon: a run failed": "send-notification",
        "harmon: no worker takes a run": "send-notification",
        "harmon: a run stands still": "send-notification",
        "harmon: a run is a zombie": "change-flow-run-state",
        CEILING: "cancel-flow-run",
    }


@pytest.mark.parametrize("kind", ["process", "kubernetes"])
def test_a_pool_has_a_told_variable_for_every_place_of_its_template(kind: str) -> None:
    image = "registry/harmon:1" if kind == "kubernetes" else None
    template = job_template(Deploying(folder=Path("/work"), kind=kind, image=image))
    variables = template["variables"]["properties"]
    places = set(re.findall(r"{{ (\w+) }}", str(template["job_configuration"])))
    assert places == set(variables)
    assert all(one["description"] and one["title"] and one["type"] for one in variables.values())
    assert variables["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"


def test_a_pod_of_a_flow_run_is_unprivileged_and_is_named_as_the_worker_asks() -> None:
    asked = Deploying(folder=Path("/work"), kind="kubernetes", image="registry/harmon:1", claim="shared")
    template = job_template(asked)
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "prefect-job" and container["workingDir"] == "/runs"
    assert pod["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
    variables = template["variables"]["properties"]
    assert variables["image"]["default"] == "registry/harmon:1" and variables["claim"]["default"] == "shared"


@pytest.mark.parametrize("wrong", [{"kind": "kubernetes"}, {"image": "a"}, {"heartbeat_seconds": 5}, {"gpu_runs": 0}])
def test_a_pool_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        parse(Deploying, {"folder": "/work", **wrong}, "harmon deploy")


def test_a_recipe_is_named_from_the_folder_that_flows_run_in() -> None:
    assert recipes_named([Path("/work/recipes/a.yaml"), Path("/else/b.yaml")], Path("/work")) == (
        Path("recipes/a.yaml"),
        Path("/else/b.yaml"),
    )
