"""The cluster files are what Ray's launcher and KubeRay know, say the paper's machines, and hold no secret.

`ray` and `kubectl` stand in for a cloud: they write down what `harmon cluster` has them do.
"""

import json
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from flows.cli import main
from flows.cluster.aws import Aws
from flows.cluster.head import MARK
from flows.cluster.kuberay import KubeRay
from flows.cluster.prices import hourly
from flows.cluster.provider import NodeType
from flows.cluster.scaling import Change, Outcome, leavers
from flows.cluster.state import ClusterState, Node
from pipelines.errors import ConfigurationError
from tests.infra.kube_files import strict
from tests.parts import need_shared

AWS, KUBERAY = Path("infra/aws/cluster.yaml"), Path("infra/kuberay")
FILES = [AWS, *(KUBERAY / f"{name}.yaml" for name in ("raycluster", "rayjob-data", "rayjob-train"))]
TRAIN = Node(id="t" * 56, type="train", ip="10.0.0.2", state="RUNNING", total={"GPU": 8, "train": 1}, used={"GPU": 6},
             actors=("RayTrainWorker",) * 6)  # fmt: skip
DATA = Node(id="d" * 56, type="data", ip="10.0.0.3", state="IDLE", total={"CPU": 32, "data": 1}, idle_seconds=90)
STATE = ClusterState(nodes=(TRAIN, DATA))


def launcher() -> Any:
    return yaml.safe_load(AWS.read_text())


@cache
def crd(kind: str) -> jsonschema.Draft202012Validator:
    """KubeRay's schema of a kind, which takes no unknown word; made once, and not checked itself."""
    found = yaml.load(need_shared(f"reference/kuberay/ray.io_{kind}.yaml").read_text(), yaml.CSafeLoader)
    (version,) = (one for one in found["spec"]["versions"] if one["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {}
    return jsonschema.Draft202012Validator(schema)


def groups(name: str) -> dict[str, Any]:
    document = yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    return {one["groupName"]: one for one in spec["workerGroupSpecs"]}


def test_the_launcher_file_is_what_rays_schema_knows() -> None:
    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher(), schema)


@pytest.mark.parametrize(
    ("name", "kind"), [("raycluster", "rayclusters"), ("rayjob-data", "rayjobs"), ("rayjob-train", "rayjobs")]
)
def test_the_kubernetes_files_are_what_kuberay_knows(name: str, kind: str) -> None:
    knows = crd(kind)
    document = yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())
    knows.validate(document)
    assert not knows.is_valid(document | {"spec": document["spec"] | {"nodes": 4}})  # a word that KubeRay does not know


def test_training_has_the_papers_machines_together_and_data_is_spot() -> None:
    types = launcher()["available_node_types"]
    train = types["train"]["node_config"]
    assert types["train"]["max_workers"] * types["train"]["resources"]["GPU"] == 32  # paper, section 4
    assert train["InstanceType"] == "p4de.24xlarge" and "InstanceMarketOptions" not in train
    assert train["Placement"]["GroupName"] == "harmon-train"
    cards = [(one["InterfaceType"], one["NetworkCardIndex"]) for one in train["NetworkInterfaces"]]
    assert cards == [("efa", number) for number in range(4)]
    for name in ("caption", "data"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (
        "InstanceMarketOptions" not in types["download"]["node_config"] and "GPU" not in types["download"]["resources"]
    )


def test_ray_can_build_its_launches_from_the_network_cards() -> None:
    from ray.autoscaler._private.aws.config import _configure_subnets_and_groups_from_network_interfaces

    config = launcher()["available_node_types"]["train"]["node_config"]
    made = _configure_subnets_and_groups_from_network_interfaces(config)
    assert set(made["SubnetIds"]) == {"subnet-SUBNET"} and set(made["SecurityGroupIds"]) == {"sg-SECURITY_GROUP"}


def test_every_kind_of_node_has_a_resource_of_its_name_to_be_asked_by() -> None:
    types = launcher()["available_node_types"]
    assert all(name == "ray.head.default" or one["resources"][name] == 1 for name, one in types.items())
    for file in ("raycluster", "rayjob-data", "rayjob-train"):
        for name, one in groups(file).items():
            assert json.loads(json.loads(one["rayStartParams"]["resources"])) == {name: 1}


def test_the_jobs_clusters_have_the_standing_clusters_groups() -> None:
    standing = groups("raycluster")
    assert set(standing) == set(Aws().types()) - {"ray.head.default"}
    for file in ("rayjob-data", "rayjob-train"):
        for name, one in groups(file).items():
            assert one["template"] == standing[name]["template"]
    assert groups("rayjob-train")["train"]["replicas"] * 8 == 32


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_holds_a_secret_or_a_root_container(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|[0-9]{12}\.dkr|\b[0-9a-f]{64}\b", text)
    assert not re.search(r"(?i)(password|secret_access_key|token)\s*[:=]\s*\w{8,}", text)
    for pod in re.findall(r"runAs\w+: \w+", text):
        assert pod in ("runAsNonRoot: true", "runAsUser: 2000")


def test_both_places_name_the_instances_that_prices_are_looked_up_by() -> None:
    for provider in (Aws(), KubeRay()):
        types = provider.types()
        assert types["train"] == NodeType(4, "p4de.24xlarge", 8) and types["data"].instance == "c7i.8xlarge"


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`ray` and `kubectl` that write down what they are called with; on a head they say STATE, or an outcome."""
    outcome = Outcome(kind="train", before=1, now=1, spared=(TRAIN.id,), reached=False)
    (tmp_path / "state").write_text(f"launcher's own words\n{MARK}{STATE.model_dump_json()}\r\nmore of them\n")
    (tmp_path / "outcome").write_text(f"{MARK}{outcome.model_dump_json()}\n")
    said = f'case "$*" in *"head scale"*) cat {tmp_path}/outcome;; *exec*) cat {tmp_path}/state;; esac'
    script = f'#!/bin/sh\necho "$(basename $0) $*" >> {tmp_path}/heard\n{said}\n'
    for name in ("ray", "kubectl"):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "heard"


def cluster(*words: str) -> Result:
    return CliRunner().invoke(main, ["cluster", *words])


HEAD = "python -m flows.cluster.head"
EXEC = {
    "aws": f"ray exec {AWS.absolute()} {HEAD}",
    "kuberay": f"kubectl -n harmon exec svc/harmon-head-svc -c ray-head -- {HEAD}",
}


@pytest.mark.parametrize("place", ["aws", "kuberay"])
def test_scaling_is_done_by_the_head_and_a_spared_training_is_no_success(place: str, heard: Path) -> None:
    done = cluster("scale", "--on", place, "--type", "train", "--nodes", "0", "--wait", "5")
    assert done.exit_code == 1 and "1 stay because a training runs there" in done.output
    assert heard.read_text() == f"{EXEC[place]} scale --type train --count 0 --wait 5.0\n"
    cluster("scale", "--on", place, "--type", "train", "--gpus", "17", "--stop", "--take-training")
    assert "--type train --count 3 --wait 600.0 --stop --take-training" in heard.read_text()
    assert cluster("scale", "--on", place, "--release").exit_code == 0
    released = [line.split("ask ")[1] for line in heard.read_text().splitlines()[2:]]
    assert released == [f"--type {name} --count 0" for name in ("train", "caption", "data", "download")]


@pytest.mark.parametrize(
    ("place", "up", "down"),
    [
        ("aws", [f"ray up --yes {AWS.absolute()}"], f"ray down --yes {AWS.absolute()}"),
        (
            "kuberay",
            [
                f"kubectl apply -f {KUBERAY.absolute()}/raycluster.yaml",
                "kubectl -n harmon wait raycluster/harmon --for=condition=HeadPodReady --timeout=900s",
            ],
            f"kubectl delete --ignore-not-found -f {KUBERAY.absolute()}/raycluster.yaml",
        ),
    ],
)
def test_a_cluster_goes_up_and_is_taken_down_only_unasked_by_training(
    place: str, up: list[str], down: str, heard: Path
) -> None:
    done = cluster("up", "--on", place)
    assert done.exit_code == 0 and "training.launch.submit=http://127.0.0.1:8265" in done.output
    assert heard.read_text().splitlines() == up
    refused = cluster("down", "--on", place)
    assert refused.exit_code == 3 and "A training runs on 1 nodes" in refused.output and down not in heard.read_text()
    assert cluster("down", "--on", place, "--take-training").exit_code == 0
    assert heard.read_text().splitlines()[-1] == down


def test_status_prices_what_nobody_uses(heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("instances: {p4de.24xlarge: {usd_per_hour: 40.0, gpus: 8}, c7i.8xlarge: {usd_per_hour: 1.5}}\n")
    monkeypatch.setattr("flows.cluster.prices.hourly.__defaults__", (file,))
    said = json.loads(cluster("status", "--on", "aws", "--json").stdout)
    assert said["cost"]["usd_per_hour"] == 41.5 and said["cost"]["idle_usd_per_hour"] == 40.0 * 2 / 8 + 1.5
    told = cluster("status", "--on", "aws").output
    assert "2 nodes, 6 of 8 GPUs in use" in told and "6 x RayTrainWorker" in told
    assert "$41.50 an hour, of which $11.50 for what nobody uses" in told


def test_without_a_price_list_the_cost_is_said_to_be_unknown(tmp_path: Path) -> None:
    prices = hourly(Aws().types(), tmp_path / "none.yaml")
    assert prices == {} and "no price is known of: data, train" in list(STATE.lines(prices))
    (tmp_path / "wrong.yaml").write_text("instances: {p4de.24xlarge: {gpus: 8}}")
    with pytest.raises(ConfigurationError, match=r"instances\.p4de\.24xlarge needs a number usd_per_hour"):
        hourly(Aws().types(), tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nodes", "1", "--gpus", "8"], "Name one of --nodes, --gpus"),
        (["--nodes", "1"], "name one with --type: train, caption, data, download"),
        (["--nodes", "1", "--type", "trian"], "'train'"),
        (["--nodes", "9", "--type", "train"], "may have 4 nodes of train at most, not 9"),
        (["--gpus", "33", "--type", "train"], "may have 4 nodes of train at most, not 5"),
        (["--gpus", "8", "--type", "data"], "no such node type 'data'"),
        (["--nodes", "1", "--type", "train", "--follow"], "--follow belongs to --pending"),
    ],
)
def test_a_wrong_request_is_refused_before_the_cluster_is_asked(words: list[str], told: str, heard: Path) -> None:
    done = cluster("scale", "--on", "aws", *words)
    assert done.exit_code == 2 and told in done.output and not heard.exists()


def test_idle_nodes_leave_first_and_trainings_last() -> None:
    busy = DATA.model_copy(update={"id": "b" * 56, "state": "RUNNING"})
    young = DATA.model_copy(update={"id": "y" * 56, "idle_seconds": 1.0})
    training = busy.model_copy(update={"id": "w" * 56, "actors": ("RayTrainWorker",)})
    nodes = [training, busy, young, DATA]
    for count, going in [(4, []), (3, [DATA]), (2, [DATA, young]), (1, [DATA, young, busy])]:
        assert leavers(nodes, Change("data", count)) == (going, [])
    assert leavers(nodes, Change("data", 0)) == ([DATA, young, busy], [training])
    assert leavers(nodes, Change("data", 0, take_training=True)) == ([DATA, young, busy, training], [])
