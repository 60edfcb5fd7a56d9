"""Workers that Ray is about to start again as more of them, or as fewer: they save first, so that no step comes twice.

Ray's controller only kills its workers when it finds room for more. A callback there holds it back, and tells the
workers through an actor beside both; they save as when a machine is taken away, and wait for their end.
"""

import logging
import time
from typing import Any, Literal

SAVE_SECONDS = 300.0  # for which the controller waits for a checkpoint; then the steps since the last one come again
POLL_SECONDS, ANSWER_SECONDS = 0.2, 10.0
log = logging.getLogger(__name__)


class Growth:
    """What the controller and the workers say to each other."""

    def __init__(self) -> None:
        self._wanted = self._ready = False

    def begin(self) -> None:
        """New workers train."""
        self._wanted = self._ready = False

    def want(self) -> None:
        """The workers are to save."""
        self._wanted = True

    def wanted(self) -> bool:
        """Whether they are."""
        return self._wanted

    def end(self) -> None:
        """The workers train no more, having saved or not."""
        self._ready = True

    def ready(self) -> bool:
        """Whether they may be ended."""
        return self._ready


def open_growth() -> Any:
    """A `Growth` in an actor of its own on this machine, which lives as long as this process's Ray."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Growth).remote()


def asked(growth: Any, question: Literal["begin", "want", "wanted", "end", "ready"]) -> bool | None:
    """What `growth` says; None where its actor does not answer: training goes on without, and what is lost are steps at
    most.
    """
    import ray
    from ray.exceptions import RayError

    try:
        return bool(ray.get(getattr(growth, question).remote(), timeout=ANSWER_SECONDS))
    except RayError as error:
        log.warning("controller and workers cannot speak of more workers: %s", error)
        return None


def growing_callback(growth: Any) -> Any:
    """A callback of Ray Train's controller that lets workers save before it resizes them while they train."""
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller.state import ResizingState

    class Growing(ControllerCallback):  # type: ignore[misc]  # Ray has no types here
        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            """The state Resizing comes when running workers are to be replaced, and only then."""
            if not isinstance(current_state, ResizingState):
                return
            deadline = time.monotonic() + SAVE_SECONDS
            if asked(growth, "want") is None:
                return
            while not (ready := asked(growth, "ready")):
                if ready is None or time.monotonic() > deadline:
                    log.warning("no checkpoint within %g s: the steps since the last one come again", SAVE_SECONDS)
                    return
                time.sleep(POLL_SECONDS)

    return Growing()
