"""What stands on a Prefect server, held against what is wanted there, and put right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipelines.errors import ConfigurationError, HarmonError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

Kind = Literal["work pool", "work queue", "deployment", "automation"]
SHOWN = 60  # letters of a value in the sentence that tells of its change
SCHEDULES = "schedules"


@dataclass(frozen=True)
class Thing:
    """Something that is to stand on the server, or not to stand there any more."""

    kind: Kind
    name: str
    """As a person knows it: of a queue POOL/QUEUE, of a deployment FLOW/DEPLOYMENT."""
    wanted: Mapping[str, Any] | None
    """Fields as the server's API names them, of which others are left as they are; None: it is not to stand."""


@dataclass(frozen=True)
class Change:
    """What was, or would be, done to one thing."""

    kind: Kind
    name: str
    done: Literal["new", "changed", "removed", "unchanged"]
    differences: tuple[str, ...] = ()

    def line(self) -> str:
        """As `harmon deploy` prints it."""
        return f"{self.done:<9} {self.kind} {self.name}" + "".join(f"\n            {one}" for one in self.differences)


@dataclass
class Server:
    """A Prefect server through its API."""

    client: "SyncPrefectClient"
    flows: dict[str, str] = field(default_factory=dict)
    """Identities of flows, by name, as far as they were asked for."""

    def put(self, thing: Thing, dry: bool = False) -> Change:
        """Make it stand as it is wanted; `dry` only says what that would change."""
        present = self._present(thing)
        if thing.wanted is None:
            if present is not None and not dry:
                self._ask("DELETE", self._place(thing, present))
            return Change(thing.kind, thing.name, "unchanged" if present is None else "removed")
        if present is None:
            if not dry:
                self._create(thing, dict(thing.wanted))
            return Change(thing.kind, thing.name, "new")
        found = tuple(differences(present, thing.wanted))
        if found and not dry:
            self._update(thing, present)
        return Change(thing.kind, thing.name, "changed" if found else "unchanged", found)

    def block_identity(self, block: str) -> str:
        """Identity of a block document, named TYPE/NAME. Raises ConfigurationError where there is none."""
        kind, _, name = block.partition("/")
        found = self._found("GET", f"/block_types/slug/{kind}/block_documents/name/{name}") if name else None
        if found is None:
            raise ConfigurationError(
                f"--notify {block}: the server has no such block; make one in the UI, and name it TYPE/NAME as in "
                "slack-webhook/ops."
            )
        return str(found["id"])

    def _present(self, thing: Thing) -> dict[str, Any] | None:
        if thing.kind == "automation":
            wanted = {"automations": {"name": {"any_": [thing.name]}}}
            found: list[dict[str, Any]] = self._ask("POST", "/automations/filter", wanted)
            return found[0] if found else None
        return self._found("GET", self._place(thing))

    def _place(self, thing: Thing, present: Mapping[str, Any] | None = None) -> str:
        """Where the API has it: by its name, or its identity where it is `present`."""
        pool, _, queue = thing.name.partition("/")
        if thing.kind == "work pool":
            return f"/work_pools/{pool}"
        if thing.kind == "work queue":
            return f"/work_pools/{pool}/queues/{queue}"
        if thing.kind == "deployment" and present is None:
            return f"/deployments/name/{thing.name}"
        assert present is not None
        return f"/{thing.kind}s/{present['id']}"

    def _create(self, thing: Thing, wanted: dict[str, Any]) -> None:
        if thing.kind == "work queue":
            self._ask("POST", f"/work_pools/{thing.name.partition('/')[0]}/queues/", wanted)
        elif thing.kind == "deployment":
            self._ask("POST", "/deployments/", wanted | {"flow_id": self._flow(thing.name.partition("/")[0])})
        else:
            self._ask("POST", "/work_pools/" if thing.kind == "work pool" else "/automations/", wanted)

    def _update(self, thing: Thing, present: Mapping[str, Any]) -> None:
        assert thing.wanted is not None
        wanted = dict(thing.wanted)
        if thing.kind == "deployment":  # the API puts a deployment of the same name in its place, schedules anew
            paused = {one["slug"] for one in present[SCHEDULES] if not one["active"]}
            wanted[SCHEDULES] = [one | {"active": one["slug"] not in paused} for one in wanted[SCHEDULES]]
            self._create(thing, wanted)
        elif thing.kind == "automation":
            self._ask("PUT", self._place(thing, present), wanted | {"enabled": present["enabled"]})
        else:
            left = {key: value for key, value in wanted.items() if key not in ("name", "type")}
            self._ask("PATCH", self._place(thing), left)

    def _flow(self, name: str) -> str:
        if name not in self.flows:
            self.flows[name] = self._ask("POST", "/flows/", {"name": name})["id"]
        return self.flows[name]

    def _found(self, method: Literal["GET"], place: str) -> dict[str, Any] | None:
        from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

        try:
            found: dict[str, Any] = self._ask(method, place)
        except ObjectNotFound:
            return None
        except PrefectHTTPStatusError as error:
            if error.response.status_code == 404:
                return None
            raise
        return found

    def _ask(self, method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"], place: str, said: Any = None) -> Any:
        from prefect.exceptions import PrefectHTTPStatusError

        try:
            answer = self.client.request(method, place, json=said)  # type: ignore[arg-type]  # a place made of names
        except PrefectHTTPStatusError as error:
            if error.response.status_code == 404:
                raise
            raise HarmonError(f"The Prefect server refuses {method} {place}: {error.response.text[:500]}") from None
        return answer.json() if answer.content else None


def differences(present: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Where `present` is not as `wanted`; keys that only `present` has are not looked at. Lists of words are sets."""
    if isinstance(wanted, Mapping) and isinstance(present, Mapping):
        for key, value in wanted.items():
            yield from differences(present.get(key), value, f"{path}.{key}" if path else str(key))
    elif _are_lists(present, wanted) and not all(isinstance(one, str) for one in (*present, *wanted)):
        if len(present) != len(wanted):
            yield f"{path}: {len(wanted)} in place of {len(present)}"
            return
        for number, (old, new) in enumerate(zip(present, wanted)):
            yield from differences(old, new, f"{path}.{number}")
    elif _are_lists(present, wanted):
        if sorted(present) != sorted(wanted):
            yield _said(path, present, wanted)
    elif present != wanted:
        yield _said(path, present, wanted)


def _are_lists(*values: Any) -> bool:
    return all(isinstance(one, Sequence) and not isinstance(one, str) for one in values)


def _said(path: str, old: Any, new: Any) -> str:
    before, now = (text if len(text) <= SHOWN else f"{text[:SHOWN]}…" for text in (repr(old), repr(new)))
    return f"{path}: {now}, was {before}"
