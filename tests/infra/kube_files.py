"""The Kubernetes files below infra/, and what is asked of every pod in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.parts import need_shared

INFRA = Path("infra")
LATEST = "1.33"  # of Kubernetes, whose schemas the files are held against
WITHOUT_SCHEMA = {"kueue.x-k8s.io", "monitoring.coreos.com"}  # other projects' kinds, of which no schema is at hand
SECRET = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET|AUTH_STRING)$")


@dataclass(frozen=True)
class Resource:
    """One document of a file."""

    file: str
    document: dict[str, Any]

    @property
    def group(self) -> str:
        version: str = self.document["apiVersion"]
        return version.rpartition("/")[0]

    @property
    def name(self) -> str:
        named = self.document["metadata"]
        return f"{self.file}: {self.document['kind']} {named.get('name') or named['generateName']}"


def files() -> list[Path]:
    """Every YAML file below infra/ whose documents are Kubernetes resources, kustomizations left out."""
    found = []
    for path in sorted(INFRA.rglob("*.yaml")):
        documents = [one for one in yaml.safe_load_all(path.read_text()) if one]
        if documents and all({"apiVersion", "kind"} <= one.keys() for one in documents if isinstance(one, dict)):
            found.append(path)
    return [path for path in found if path.name != "kustomization.yaml"]


def resources(text: str, file: str) -> list[Resource]:
    return [Resource(file, one) for one in yaml.safe_load_all(text) if one]


def all_resources() -> list[Resource]:
    return [one for path in files() for one in resources(path.read_text(), str(path))]


def pods(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Each pod's specification in a resource, and whether it is one of Ray's."""
    ray = document["apiVersion"].startswith("ray.io/")

    def below(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            if isinstance(value.get("containers"), list):
                yield value
            for one in value.values():
                yield from below(one)
        elif isinstance(value, list):
            for one in value:
                yield from below(one)

    for pod in below(document.get("spec", {})):
        yield pod, ray


def complaints(document: dict[str, Any]) -> list[str]:
    """What is wrong with the pods of a resource; empty where nothing is."""
    return [said for pod, ray in pods(document) for said in (*_of_pod(pod), *_of_containers(pod, ray))]


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        yield "the pod may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "the pod has not the runtime's seccomp profile"
    yield from (f"the pod has {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    yield from (
        f"the volume {one['name']} is a folder of its machine" for one in pod.get("volumes", ()) if "hostPath" in one
    )


def _of_containers(pod: dict[str, Any], ray: bool) -> Iterator[str]:
    for one in (*pod["containers"], *pod.get("initContainers", ())):
        name, security, asked = one["name"], one.get("securityContext", {}), one.get("resources", {})
        image = one.get("image", "")
        if "@sha256:" not in image and (":" not in image.rpartition("/")[2] or image.endswith(":latest")):
            yield f"{name}: the image {image} is not pinned"
        if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain rights"
        if security.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name} keeps capabilities"
        if security.get("runAsNonRoot") is False or security.get("runAsUser") == 0:
            yield f"{name} runs as root"
        if not ray and security.get("readOnlyRootFilesystem") is not True:  # Ray writes below its user's home
            yield f"{name} may write into its image"
        if not {"cpu", "memory"} <= asked.get("requests", {}).keys() or "memory" not in asked.get("limits", {}):
            yield f"{name} does not say what it needs"
        yield from (
            f"{name}: {variable['name']} stands in the file"
            for variable in one.get("env", ())
            if SECRET.search(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {})
        )


@cache
def ray_schema(kind: str) -> Any:
    """The schema of a kind of Ray's (KubeRay's CRDs); skips where the reference data is absent."""
    text = need_shared(f"reference/kuberay/ray.io_{kind.lower()}s.yaml").read_text()
    crd = yaml.load(text, yaml.CSafeLoader)
    (version,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {}
    return schema


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(one) for name, one in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        closed["additionalProperties"] = False
    return closed
