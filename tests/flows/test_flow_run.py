"""Whether a flow run is cancelled, asked of a real Prefect server."""

from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from flows.flow_run import Cancelled, cancellation
from flows.recipe import load_recipe
from flows.run import _as_flow
from flows.server import prefect_server
from flows.work_item import Work
from pipelines.errors import HarmonError
from tests.flows.small_run import RECIPE


@pytest.mark.alone  # Prefect remembers the first server of a process, which other tests start
def test_a_step_hears_that_its_flow_run_is_cancelled_and_the_run_ends_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    recipe = load_recipe(RECIPE, [f"runs={tmp_path / 'run'}", f"data={tmp_path / 'data'}"])
    heard: list[object] = []

    def work(_: object) -> None:
        from prefect.client.orchestration import get_client
        from prefect.runtime import flow_run
        from prefect.states import Cancelling

        cancelled = cancellation()
        heard.append(cancelled())
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.get_id(), Cancelling(), force=True)  # as the UI's button does
        heard.extend([cancelled(), flow_run.get_id()])
        raise Cancelled("its Ray job is stopped")

    with prefect_server(tmp_path / "server.log"):
        with pytest.raises(HarmonError, match="its Ray job is stopped"):
            _as_flow(recipe, [Work("train", "stage1", lambda: False, work)])
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            state = client.read_flow_run(heard.pop()).state
    assert heard == [False, True]
    assert state.is_cancelled() and state.message == "its Ray job is stopped"


def test_work_goes_on_while_prefects_server_takes_no_progress(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """It may start anew while a training of days goes on."""
    from flows import progress

    asked: list[float] = []

    def update(progress: float, **_: object) -> None:
        asked.append(progress)
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(progress, "create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(progress, "update_progress_artifact", update)
    with progress.progress_artifact("stage1") as show:
        show(4, 4, "")
    assert asked == [100.0, 100.0] and caplog.text.count("does not take progress: refused") == 2


def test_outside_of_a_flow_run_nothing_is_ever_cancelled() -> None:
    assert cancellation()() is False
