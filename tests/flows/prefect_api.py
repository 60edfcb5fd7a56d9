"""What the UI and other programs ask of a Prefect server, through its REST API alone."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

BUSY_SECONDS = 60.0  # for which SQLite may be locked on a busy machine; Prefect's own client tries again, too
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Api:
    """A server's API at `address`."""

    address: str

    def get(self, place: str) -> Any:
        return self._ask("GET", place)

    def post(self, place: str, **said: Any) -> Any:
        return self._ask("POST", place, said)

    def start(self, deployment: str, parameters: Mapping[str, Any]) -> str:
        """Start a flow run of FLOW/DEPLOYMENT; its identity."""
        identity = self.get(f"/deployments/name/{deployment}")["id"]
        return self.post(f"/deployments/{identity}/create_flow_run", parameters=dict(parameters))["id"]

    def state(self, run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run}")["state"] or {}

    def set_state(self, run: str, kind: str, name: str | None = None) -> None:
        """As the UI's buttons do."""
        self.post(f"/flow_runs/{run}/set_state", state={"type": kind, "name": name}, force=kind != "CANCELLING")

    def wait(self, run: str, *kinds: str, seconds: float = 240.0, log: Callable[[], str] = str) -> dict[str, Any]:
        """The state once it is one of `kinds`, of the ended ones if none is named."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.state(run)
            if state.get("type") in (kinds or ENDED):
                return state
            assert state.get("type") not in ENDED, (state, self.logs(run), log()[-4000:])
            assert time.monotonic() < deadline, (state, self.logs(run), log()[-4000:])
            time.sleep(0.2)

    def logs(self, run: str) -> list[str]:
        found = self.post("/logs/filter", logs={"flow_run_id": {"any_": [run]}}, limit=200)
        return [line["message"] for line in found]

    def artifacts(self, run: str) -> dict[str, Any]:
        """By key."""
        found = self.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        return {one["key"]: one for one in found}

    def _ask(self, method: str, place: str, said: Any = None) -> Any:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            answer = httpx.request(method, f"{self.address}{place}", json=said, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        assert answer.is_success, (place, answer.text)
        return answer.json() if answer.content else None
