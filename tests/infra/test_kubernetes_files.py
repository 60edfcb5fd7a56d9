"""Kubernetes knows every word of the files below infra/, and no pod of theirs has more rights than it needs."""

import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import AliasChoices, BaseModel

from tests.infra.kube_files import (
    INFRA,
    LATEST,
    WITHOUT_SCHEMA,
    Resource,
    all_resources,
    complaints,
    files,
    pods,
    ray_schema,
    resources,
)
from tests.parts import need

OVERLAYS = sorted((INFRA / "kubernetes" / "overlays").iterdir())
BASE = INFRA / "kubernetes" / "base"


@cache
def rendered(overlay: Path) -> list[Resource]:
    if shutil.which("kubectl") is None:  # Debian has none, so CI may do without
        pytest.skip("kubectl, which renders overlays, is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return resources(done.stdout, str(overlay))


def unknown(found: list[Resource]) -> dict[str, str]:
    """What the schemas refuse, by resource."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="run make env: it has kubernetes-validate")
    refused = {}
    for one in found:
        try:
            if one.group == "ray.io":
                jsonschema.validate(one.document, ray_schema(one.document["kind"]))
            elif one.group not in WITHOUT_SCHEMA:
                kubernetes_validate.validate(one.document, LATEST, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            refused[one.name] = error.message
    return refused


def test_files_are_found() -> None:
    found = {str(path) for path in files()}
    assert {"infra/vllm/kubernetes.yaml", "infra/vllm/rayservice.yaml", "infra/kubernetes/base/worker.yaml"} <= found


@pytest.mark.parametrize("file", files(), ids=str)
def test_kubernetes_knows_every_word_of_a_file(file: Path) -> None:
    assert unknown(resources(file.read_text(), str(file))) == {}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_renders_to_what_kubernetes_knows_and_keeps_the_rules(overlay: Path) -> None:
    found = rendered(overlay)
    assert unknown(found) == {}
    assert {one.name: said for one in found if (said := complaints(one.document))} == {}
    kinds = {one.document["kind"] for one in found}
    assert {"Namespace", "ServiceAccount", "StatefulSet", "Deployment", "NetworkPolicy"} <= kinds
    outside = [one.name for one in found if one.document["metadata"].get("namespace") != "harmon"]
    assert outside == [f"{overlay}: Namespace harmon"]


def test_a_word_that_kubernetes_does_not_know_is_seen() -> None:
    (account,) = resources("{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}, automount: false}", "here")
    (ours,) = [one for one in all_resources() if one.name.endswith("RayService vllm-rewrite")]
    service = Resource("here", deepcopy(ours.document))
    service.document["spec"]["rayClusterConfig"]["rayVersoin"] = "2.60.0"
    assert set(unknown([account, service])) == {"here: ServiceAccount a", "here: RayService vllm-rewrite"}


@pytest.mark.parametrize("one", all_resources(), ids=lambda one: one.name)
def test_no_pod_has_more_rights_than_it_needs(one: Resource) -> None:
    assert complaints(one.document) == []


GOOD = """
apiVersion: v1
kind: Pod
metadata: {name: good}
spec:
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: one
      image: busybox:1.37.0
      env: [{name: API_KEY, valueFrom: {secretKeyRef: {name: secret, key: key}}}]
      resources: {requests: {cpu: "1", memory: 1Gi}, limits: {memory: 1Gi}}
      securityContext:
        {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
"""
BAD = {
    "spec.securityContext.runAsNonRoot=false": "root",
    "spec.securityContext.seccompProfile={type: Unconfined}": "seccomp",
    "spec.hostNetwork=true": "hostNetwork",
    "spec.volumes=[{name: all, hostPath: {path: /}}]": "folder of its machine",
    "spec.containers.0.image=busybox": "pinned",
    "spec.containers.0.image=localhost:5000/busybox": "pinned",
    "spec.containers.0.image=busybox:latest": "pinned",
    "spec.containers.0.env=[{name: API_KEY, value: abc}]": "stands in the file",
    "spec.containers.0.resources={requests: {cpu: '1'}}": "needs",
    "spec.containers.0.securityContext.privileged=true": "rights",
    "spec.containers.0.securityContext.allowPrivilegeEscalation=true": "rights",
    "spec.containers.0.securityContext.readOnlyRootFilesystem=false": "image",
    "spec.containers.0.securityContext.capabilities={add: [SYS_ADMIN]}": "capabilities",
    "spec.containers.0.securityContext.runAsUser=0": "root",
}


@pytest.mark.parametrize("change", BAD)
def test_a_pod_that_breaks_a_rule_is_complained_of(change: str) -> None:
    from pipelines.settings import with_override

    pod = yaml.safe_load(GOOD)
    assert complaints(pod) == []
    with_override(pod, change)
    (said,) = complaints(pod)
    assert BAD[change] in said


def test_no_file_holds_a_secret() -> None:
    assert [one.name for one in all_resources() if one.document["kind"] == "Secret"] == []


def policies() -> dict[str, Any]:
    found = resources((BASE / "network.yaml").read_text(), "network.yaml")
    return {one.document["metadata"]["name"]: one.document["spec"] for one in found}


def test_nothing_may_talk_but_what_is_said() -> None:
    first, *others = policies().values()
    assert first == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert all(rule.get("from") for one in others for rule in one.get("ingress", ()))
    assert all(rule.get("to") for one in others for rule in one.get("egress", ()))
    ray = policies()["ray"]  # which chooses its ports itself
    assert all(
        rule.get("ports") for one in others if one != ray for rule in (*one.get("ingress", ()), *one.get("egress", ()))
    )


@pytest.mark.parametrize("name", ["prefect-worker", "ray"])
def test_a_download_reaches_the_internet_and_no_address_of_this_network(name: str) -> None:
    """The guard judges each connection; the network does so again."""
    blocks = [peer["ipBlock"] for rule in policies()[name]["egress"] for peer in rule["to"] if "ipBlock" in peer]
    (internet,) = blocks
    assert internet["cidr"] == "0.0.0.0/0"
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(internet["except"])


def test_what_policies_and_services_select_is_there() -> None:
    labels = [
        one.document["spec"]["template"]["metadata"]["labels"]
        for one in all_resources()
        if "template" in one.document.get("spec", {})
    ]
    selected = [one.document["spec"]["selector"] for one in all_resources() if one.document["kind"] == "Service"]
    selected += [one["podSelector"].get("matchLabels", {}) for one in policies().values()]
    ours = [one for one in selected if not any(name.startswith("ray.io/") for name in one)]
    assert [one for one in ours if not any(one.items() <= label.items() for label in labels)] == []


def variables(model: type[BaseModel], path: str = "prefect") -> Iterator[str]:
    """The environment variables that a Prefect settings model reads."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from variables(inner, f"{path}_{name}")
            continue
        yield f"{path}_{name}".upper()
        if isinstance(field.validation_alias, AliasChoices):
            yield from (one.upper() for one in field.validation_alias.choices if isinstance(one, str))


def test_prefect_knows_every_setting_that_it_is_given() -> None:
    from prefect.settings import Settings

    named = {
        variable["name"]
        for file in ("prefect", "worker")
        for one in resources((BASE / f"{file}.yaml").read_text(), file)
        if one.document["kind"] == "Deployment"
        for variable in one.document["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"].startswith("PREFECT_")
    }
    assert len(named) > 10
    assert named - set(variables(Settings)) == set()


def test_images_are_those_that_the_dockerfiles_say_how_to_build() -> None:
    built = {
        line.split(" -t ")[1].split()[0]
        for path in (INFRA / "docker").glob("*.Dockerfile")
        for line in path.read_text().splitlines()
        if line.startswith("#   docker build")
    }
    used = {
        container["image"]
        for one in all_resources()
        for container in one.document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())
    }
    assert {image for image in used if image.startswith("harmon-")} <= built


def test_accounts_that_pods_name_are_there() -> None:
    there = {one.document["metadata"]["name"] for one in all_resources() if one.document["kind"] == "ServiceAccount"}
    named = {
        pod["serviceAccountName"]
        for one in all_resources()
        for pod, _ in pods(one.document)
        if "serviceAccountName" in pod
    }
    assert named <= there


def test_every_overlay_and_base_can_be_found_by_kustomize() -> None:
    for path in (INFRA / "kubernetes").rglob("kustomization.yaml"):
        named = yaml.safe_load(path.read_text())["resources"]
        assert all((path.parent / one).exists() for one in named), path
    need(len(OVERLAYS) >= 2, "there are overlays for a small machine and for a cloud")
