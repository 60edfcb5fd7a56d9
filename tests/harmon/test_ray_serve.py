"""The server as a Ray Serve application: the file is one that Serve takes, and a replica answers like the server."""

from pathlib import Path

import httpx
import pytest
import yaml
from small_checkpoints import make_run
from test_serving import CHAT, PICTURES, ROW, pixels, same

from harmon.generate import draw_pictures
from harmon.sampling_config import SamplingConfig
from harmon.serving.ray_app import RaySettings, build
from harmon.serving.server import KEY_VARIABLE, bound
from harmon.trained import load
from harmon.training.launch import set_ray_environment
from pipelines.errors import ConfigurationError
from pipelines.settings import parse

FILE = Path(__file__).parents[2] / "infra" / "ray-serve" / "harmon.yaml"


def test_the_file_is_one_that_serve_and_the_application_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load(FILE.read_text())
    [application] = ServeDeploySchema.model_validate(values).applications
    settings = parse(RaySettings, application.args, str(FILE))
    bound_app = build(settings)
    [deployment] = application.deployments
    assert deployment.name == bound_app._bound_deployment.name == "harmon"
    limits = settings.limits
    assert deployment.max_ongoing_requests >= limits.pictures + limits.queue
    assert deployment.graceful_shutdown_timeout_s > limits.deadline
    assert values["http_options"]["request_timeout_s"] > limits.deadline
    assert settings.no_key and values["http_options"]["host"] == "127.0.0.1"


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'checkpoint'"):
        parse(RaySettings, {"checkpoints": "/models/harmon"}, "args")


@pytest.mark.slow
def test_a_replica_draws_answers_and_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray import serve

    monkeypatch.setenv(KEY_VARIABLE, "word")
    set_ray_environment()
    run = make_run(tmp_path / "run")
    with bound("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(RaySettings(checkpoint=str(run))), route_prefix="/")
        address, key = f"http://127.0.0.1:{port}", {"Authorization": "Bearer word"}
        assert httpx.get(f"{address}/v1/models", timeout=60).status_code == 401
        asked = {"prompt": "a circle", "seed": 3}
        drawn = httpx.post(address + PICTURES, json=asked, headers=key, timeout=60).raise_for_status().json()
        trained = load(run)
        how = SamplingConfig(**trained.sampling)
        assert same(pixels(drawn["data"][0]["b64_json"]), draw_pictures(trained, ["a circle"], [3], how)[0])
        chat = {"messages": [ROW], "max_tokens": 5, "stream": True}
        told = httpx.post(address + CHAT, json=chat, headers=key, timeout=60).text
        assert told.endswith("data: [DONE]\n\n") and told.count("data: ") > 2
    finally:
        serve.shutdown()
        ray.shutdown()
