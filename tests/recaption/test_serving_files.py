"""The serving files say the same in every form, and vLLM knows every flag; tests/infra asks KubeRay and Kubernetes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from recaption.engines import EngineSettings
from recaption.prompt import load_prompt
from recaption.server import vllm_environment, vllm_python
from tests.parts import need

FOLDER = Path("infra/vllm")
SERVERS = ("rewrite", "caption")
PARSE = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
lines = [json.loads(line) for line in sys.stdin]
parser = make_arg_parser(FlexibleArgumentParser())
for flags in lines[:-1]:
    parser.parse_args(flags)
fields = {field for field in EngineArgs.__dataclass_fields__}
print(sorted(set(lines[-1]) - fields))
"""


def script(server: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The shell script with a python that prints what it is handed."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done\n')
    python.chmod(0o755)
    command = ["sh", str(FOLDER / f"serve-{server}.sh")]
    return subprocess.run(
        command, env={"PYTHON": str(python), "PATH": "/usr/bin:/bin", **environment}, capture_output=True
    )


def script_flags(server: str, tmp_path: Path) -> list[str]:
    """What the shell script hands to python, as it would run."""
    said = script(server, tmp_path)
    assert said.returncode == 0, said.stderr
    return said.stdout.decode().split("\0")[2:-1]


def kubernetes() -> dict[tuple[str, str], Any]:
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def pod_flags(server: str) -> list[str]:
    (container,) = kubernetes()["Deployment", f"vllm-{server}"]["spec"]["template"]["spec"]["containers"]
    flags: list[str] = container["args"]
    return flags


def application(server: str) -> Any:
    (found,) = yaml.safe_load((FOLDER / f"{server}-app.yaml").read_text())["applications"]
    return found


def engine(server: str) -> dict[str, Any]:
    (config,) = application(server)["args"]["llm_configs"]
    found: dict[str, Any] = config["engine_kwargs"]
    return found


def as_mapping(flags: list[str]) -> dict[str, Any]:
    """--a b --c=d --e as {a: b, c: d, e: True}, values as YAML reads them."""
    found: dict[str, Any] = {}
    for word in flags:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[last := name.replace("-", "_")] = yaml.safe_load(value) if equals else True
        else:
            found[last] = yaml.safe_load(word)
    return found


@pytest.mark.parametrize("server", SERVERS)
def test_script_pod_and_application_start_the_same_engine(server: str, tmp_path: Path) -> None:
    places = {"model", "served_model_name", "host", "port"}
    script, pod = (as_mapping(flags) for flags in (script_flags(server, tmp_path), pod_flags(server)))
    assert {k: v for k, v in script.items() if k not in places} == engine(server)
    assert {k: v for k, v in pod.items() if k not in places} == engine(server)
    assert script["served_model_name"] == pod["served_model_name"] == script["model"]


def test_every_flag_is_one_that_vllm_has(tmp_path: Path) -> None:
    need(vllm_python().exists(), "vLLM's environment is there (make vllm)")
    lines = [flags for server in SERVERS for flags in (script_flags(server, tmp_path), pod_flags(server))]
    arguments = [[f for f in flags if not f.startswith("-m")] for flags in lines]
    asked = "".join(json.dumps(line) + "\n" for line in [*arguments, [*engine("rewrite"), *engine("caption")]])
    done = subprocess.run(
        [str(vllm_python()), "-c", PARSE],
        input=asked,
        env=vllm_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_images_are_bounded_as_the_prompt_bounds_them() -> None:
    sizes = [load_prompt(version).image for version in ("caption-dense-v1", "caption-short-v1")]
    bounds = engine("caption")["mm_processor_kwargs"]
    assert all(size and bounds["min_pixels"] <= size.min_pixels for size in sizes)
    assert bounds["max_pixels"] == max(size.max_pixels for size in sizes if size)


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_lets_nobody_in_by_default(server: str, tmp_path: Path) -> None:
    assert as_mapping(script_flags(server, tmp_path))["host"] == "127.0.0.1"
    refused = script(server, tmp_path, HOST="0.0.0.0")
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"set VLLM_API_KEY" in refused.stderr
    opened = script(server, tmp_path, HOST="0.0.0.0", VLLM_API_KEY="secret").stdout.decode().split("\0")
    assert opened[opened.index("--host") + 1] == "0.0.0.0"
    assert "secret" not in opened  # arguments are read by every user of the machine
    assert yaml.safe_load((FOLDER / f"{server}-app.yaml").read_text())["http_options"]["host"] == "127.0.0.1"


def test_pods_need_the_key_and_are_reached_by_clients_alone() -> None:
    found = kubernetes()
    policy = found["NetworkPolicy", "vllm"]["spec"]
    (wanted,) = policy["podSelector"]["matchExpressions"]
    assert wanted["values"] == [f"vllm-{server}" for server in SERVERS]
    assert policy["policyTypes"] == ["Ingress"]
    assert [set(rule) for rule in policy["ingress"]] == [{"from", "ports"}]
    for server in SERVERS:
        (container,) = found["Deployment", f"vllm-{server}"]["spec"]["template"]["spec"]["containers"]
        (key,) = (one["valueFrom"]["secretKeyRef"] for one in container["env"] if one["name"] == "VLLM_API_KEY")
        assert key == {"name": "vllm", "key": "VLLM_API_KEY"}  # not optional: without it the Pod does not start
        probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
        assert all(probe["timeoutSeconds"] >= 5 for probe in probes)  # a busy server answers late, and is well


def test_one_client_asks_enough_for_another_replica() -> None:
    from flows.recaption_commands import recaption

    (option,) = (one for one in recaption.params if one.name == "concurrency")
    assert option.default == EngineSettings().concurrency
    for server in SERVERS:
        (config,) = application(server)["args"]["llm_configs"]
        target = config["deployment_config"]["autoscaling_config"]["target_ongoing_requests"]
        assert EngineSettings().concurrency > max(target, engine(server)["max_num_seqs"])


def test_replicas_are_added_before_requests_queue() -> None:
    for server in SERVERS:
        (config,) = application(server)["args"]["llm_configs"]
        deployment = config["deployment_config"]
        wanted = deployment["autoscaling_config"]["target_ongoing_requests"]
        assert wanted < engine(server)["max_num_seqs"] < deployment["max_ongoing_requests"]


def test_the_rayservice_runs_the_application() -> None:
    service = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
    assert yaml.safe_load(service["spec"]["serveConfigV2"])["applications"] == [application("rewrite")]


def test_every_service_finds_its_pods() -> None:
    found = kubernetes()
    for server in SERVERS:
        name = f"vllm-{server}"
        pod = found["Deployment", name]["spec"]["template"]
        assert found["Service", name]["spec"]["selector"] == pod["metadata"]["labels"]
        (container,) = pod["spec"]["containers"]
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        assert gpus == as_mapping(pod_flags(server)).get("tensor_parallel_size", 1)
