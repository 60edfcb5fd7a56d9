"""What differs between what stands on a server and what is wanted there, and what the automations watch."""

from flows.deploy_automations import CEILING, automations
from flows.deploy_server import Change, differences


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
