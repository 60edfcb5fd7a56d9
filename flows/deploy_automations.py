"""What the Prefect server does of itself about our flow runs: tells of failures and stillness, ends zombies, and keeps
to a ceiling of hours.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from flows.deploy_server import Thing
from flows.flow_run import PROGRESS_EVENT

ENDED = [
    f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled", "Suspended", "Paused")
]
BEATS_MISSING = 3  # Prefect's own advice: one or two are lost on a busy machine
CEILING = "harmon: a run holds GPUs for too long"


def automations(
    heartbeat_seconds: int, still_minutes: float, most_hours: float | None, block: str | None
) -> Iterator[Thing]:
    """Each automation. Without `block`, the identity of what tells people, those that only tell leave an event."""
    tell = _telling(block)
    yield _thing(
        "harmon: a run failed",
        "Tells of a flow run that failed or crashed.",
        _reactive(["prefect.flow-run.Failed", "prefect.flow-run.Crashed"]),
        tell,
    )
    yield _thing(
        "harmon: no worker takes a run",
        "Tells of a flow run that waits for a worker, or for a place among those that hold GPUs.",
        _reactive(["prefect.flow-run.Late"]),
        tell,
    )
    yield _thing(
        "harmon: a run stands still",
        f"Tells of a flow run that has shown no progress for {still_minutes:g} minutes.",
        _proactive(
            after=["prefect.flow-run.Pending", "prefect.flow-run.Running", PROGRESS_EVENT],
            expect=["prefect.flow-run.Running", PROGRESS_EVENT, *ENDED],
            seconds=60 * still_minutes,
        ),
        tell,
    )
    lost = BEATS_MISSING * heartbeat_seconds
    yield _thing(
        "harmon: a run is a zombie",
        f"Marks a flow run as crashed that has given no sign of life for {lost} s; its Ray job ends by its lease.",
        _proactive(
            after=["prefect.flow-run.heartbeat"],
            expect=["prefect.flow-run.heartbeat", *ENDED],
            seconds=lost,
        ),
        [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": None,
                "message": f"It gave no sign of life for {lost} s. Run it again: it attaches to what still runs.",
            }
        ],
    )
    if most_hours is None:
        yield Thing("automation", CEILING, None)
        return
    yield _thing(
        CEILING,
        f"Cancels a flow run that may hold GPUs after {most_hours:g} hours, which stops its Ray job.",
        _proactive(
            after=["prefect.flow-run.Running"],
            expect=ENDED,
            seconds=3600 * most_hours,
            tags=("harmon", "gpu"),
        ),
        [{"type": "cancel-flow-run"}, *(tell if block else [])],
    )


def _telling(block: str | None) -> list[dict[str, Any]]:
    if block is None:
        return [{"type": "do-nothing"}]
    body = (
        "{{ flow.name }}, run {{ flow_run.name }}: {{ flow_run.state.name }}. {{ flow_run.state.message }}\n"
        "{{ flow_run|ui_url }}"
    )
    return [
        {
            "type": "send-notification",
            "block_document_id": block,
            "subject": "{{ automation.name }}: {{ flow_run.name }}",
            "body": body,
        }
    ]


def _thing(name: str, description: str, trigger: dict[str, Any], actions: list[dict[str, Any]]) -> Thing:
    wanted = {"name": name, "description": description, "trigger": trigger, "actions": actions, "tags": ["harmon"]}
    return Thing("automation", name, wanted)


def _reactive(expect: list[str]) -> dict[str, Any]:
    return _trigger("Reactive", [], expect, 0.0, ("harmon",))


def _proactive(
    after: list[str], expect: list[str], seconds: float, tags: Sequence[str] = ("harmon",)
) -> dict[str, Any]:
    return _trigger("Proactive", after, expect, float(seconds), tags)


def _trigger(posture: str, after: list[str], expect: list[str], within: float, tags: Sequence[str]) -> dict[str, Any]:
    """Of each flow run that has all of `tags` by itself."""
    related = [{"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"} for tag in tags]
    return {
        "type": "event",
        "posture": posture,
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": related[0] if len(related) == 1 else related,
        "for_each": ["prefect.resource.id"],
        "after": after,
        "expect": expect,
        "threshold": 1,
        "within": within,
    }
