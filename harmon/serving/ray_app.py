"""The server as a Ray Serve application: replicas that come and go with the requests in flight.

serve run infra/ray-serve/harmon.yaml
"""  # no `from __future__ import annotations`: Serve reads build's annotation as a type

import os
from typing import TYPE_CHECKING, Any, Literal

from harmon.serving.settings import ServingSettings
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.applications import Starlette


class RaySettings(Settings):
    """`args` of the application. The checkpoint lies where every node reads it."""

    checkpoint: str
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    limits: ServingSettings = ServingSettings()
    no_key: bool = False
    """Serve without a key, where a proxy asks for one. Otherwise the replicas need HARMON_API_KEY."""


class Replica:
    """One copy of the model and its engine, with batches of its own."""

    def __init__(self, settings: RaySettings) -> None:
        from pathlib import Path

        import torch

        from harmon.serving.app import application
        from harmon.serving.server import KEY_VARIABLE
        from harmon.trained import load

        key = os.environ.get(KEY_VARIABLE)
        if key is None and not settings.no_key:
            raise ConfigurationError(
                f"Ray Serve asks nobody for a key: set {KEY_VARIABLE} in the replicas' runtime_env, or `no_key`."
            )
        trained = load(Path(settings.checkpoint), device=settings.device, dtype=getattr(torch, settings.dtype))
        self._application = application(trained, settings.limits, key=key)

    def __serve_build_asgi_app__(self) -> "Starlette":  # what Serve calls once the replica is made
        return self._application


def build(settings: RaySettings) -> "Application":
    """The application, for `serve run` and `serve deploy`; the files' `deployments` say how it scales."""
    from ray import serve

    limits = settings.limits
    # a replica's own queue tells clients when to come again, so Serve passes on a little more than it holds
    most = limits.pictures + limits.answers + 2 * limits.queue + 8
    deployment: Any = serve.deployment(
        name="harmon",
        max_ongoing_requests=most,
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": limits.pictures},
    )(serve.ingress()(Replica))
    application: Application = deployment.bind(settings)
    return application
