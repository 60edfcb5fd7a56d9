"""The server's ASGI application: OpenAI's routes, health, metrics and the page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from harmon.serving import chat, images
from harmon.serving.access import Access
from harmon.serving.asked import Asked, ChatAsked, PicturesAsked, read_asked
from harmon.serving.refusal import Refused, failed
from harmon.serving.running import unless_gone
from harmon.serving.served import Served
from harmon.serving.settings import ServingSettings
from harmon.serving.studio import studio
from harmon.trained import Trained

A = TypeVar("A", bound=Asked)
GONE = 499  # never read by anybody: nginx's number for a client that went away


def application(
    trained: Trained, settings: ServingSettings, *, key: str | None = None, loopback: bool = False
) -> Starlette:
    """The application; its engine runs from its start-up to its shut-down. `key` and `loopback` as Access takes them.

    Raises:
        ConfigurationError: the checkpoint's own sampling is not one.
    """
    served, born = Served.of(trained, settings), int(time.time())
    page = studio(served)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        served.engine.start()
        try:
            yield
        finally:
            served.engine.stop()

    async def home(_: Request) -> Response:
        return HTMLResponse(page)

    async def health(_: Request) -> Response:
        alive = served.engine.alive
        return JSONResponse({"status": "ok" if alive else "the engine has ended"}, 200 if alive else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(served.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(served, born)]})

    async def model(request: Request) -> Response:
        _check_model(served, request.path_params["name"])
        return JSONResponse(_model(served, born))

    async def completions(request: Request) -> Response:
        wish = await _wish(served, request)  # without the body, which holds a picture of some megabytes
        if wish.stream:
            return chat.streamed(served, wish)
        return await unless_gone(request.receive, chat.answer(served, wish)) or Response(status_code=GONE)

    async def generations(request: Request) -> Response:
        async with served.intake.body(request) as body:
            asked = _known(served, read_asked(PicturesAsked, body))
            records = await images.records_of(served, asked)
        if asked.stream:
            return images.streamed(served, asked, records)
        drawn = await unless_gone(request.receive, images.pictures(served, records))
        return drawn or Response(status_code=GONE)

    return Starlette(
        routes=[
            Route("/", home),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/images/generations", generations, methods=["POST"]),
        ],
        middleware=[Middleware(Access, key=key, loopback=loopback, metrics=served.metrics)],
        exception_handlers={Refused: _refused, HTTPException: _not_here, Exception: _broken},
        lifespan=lifespan,
    )


async def _wish(served: Served, request: Request) -> chat.Wish:
    async with served.intake.body(request) as body:
        return await chat.wish_of(served, _known(served, read_asked(ChatAsked, body)))


def _known(served: Served, asked: A) -> A:
    _check_model(served, asked.model)
    return asked


def _check_model(served: Served, name: str) -> None:
    if name != served.settings.name:
        raise Refused(
            404, f"There is no model {name[:80]!r} here; ask for {served.settings.name!r}.", param="model",
            code="model_not_found",
        )  # fmt: skip


def _model(served: Served, born: int) -> dict[str, object]:
    trained = served.trained
    own = {"px": trained.px, "stage": trained.stage, "train_step": trained.step, "weights": trained.fingerprint}
    return {"id": served.settings.name, "object": "model", "created": born, "owned_by": "harmon", **own}


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


async def _not_here(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Refused(error.status_code, f"{error.detail}.", headers=error.headers).response()


async def _broken(_: Request, error: Exception) -> Response:
    return failed().response()  # Starlette raises it again behind this answer, and the server logs it
