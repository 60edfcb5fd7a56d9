"""POST /v1/images/generations: pictures from a prompt, whole or with the canvas filling in."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray
from starlette.responses import JSONResponse, Response

from harmon.generate import check_room, check_size, dtype_of
from harmon.picture_files import PictureRecord, png
from harmon.sampling_config import SamplingConfig
from harmon.serving.asked import PicturesAsked, two_sides
from harmon.serving.canvases import Subject
from harmon.serving.jobs import Drawing, Drawn, Frame
from harmon.serving.refusal import Refused, check_chars, too_late
from harmon.serving.running import Running, Tell
from harmon.serving.served import Served
from harmon.serving.sse import Chunks, EventStream, event
from pipelines.errors import ConfigurationError


async def records_of(served: Served, asked: PicturesAsked) -> list[PictureRecord]:
    """The pictures that `asked` wants. Raises Refused where they cannot be drawn here."""
    limits, trained = served.settings, served.trained
    count = asked.n or 1
    most = min(limits.count, limits.pictures + limits.queue)  # more would never find room
    if count > most:
        raise _refused("n", f"at most {most} pictures a request")
    if (asked.partial_images or 0) > limits.frames:
        raise _refused("partial_images", f"at most {limits.frames}")
    width, height = (trained.px,) * 2 if asked.size in (None, "auto") else two_sides(asked.size or "")
    if width * height > limits.drawn_pixels:
        raise _refused("size", f"at most {limits.drawn_pixels:,} pixels are drawn here")
    check_chars("prompt", len(asked.prompt) + len(asked.negative_prompt or ""), limits.text_chars)
    how = _sampling(served, asked)
    try:
        check_size(trained, width, height)
        texts = (asked.prompt, asked.negative_prompt)
        lengths = [len(await to_thread.run_sync(trained.text.generation_prompt, text)) for text in texts]
        if max(lengths) > limits.context_tokens:
            raise _refused("prompt", f"at most {limits.context_tokens} tokens, and this one has {max(lengths)}")
        check_room(trained, max(lengths), width, height)
    except ConfigurationError as error:
        raise Refused(400, str(error), code="invalid_value") from None
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    return [
        PictureRecord(
            prompt=asked.prompt,
            negative=asked.negative_prompt,
            seed=seed + number,
            width=width,
            height=height,
            sampling=how,
            weights=trained.fingerprint,
            dtype=dtype_of(trained),
        )
        for number in range(count)
    ]


async def pictures(served: Served, records: list[PictureRecord]) -> Response:
    """All pictures as one JSON document."""
    found: dict[int, str] = {}
    one = _drawn(served, records, 0)
    try:
        async with asyncio.timeout(served.settings.deadline):
            async for number, drawn in one.events():
                assert isinstance(drawn, Drawn)
                found[number] = await _encoded(drawn.pixels, records[number])
    except TimeoutError:
        raise too_late(served.settings.deadline) from None
    finally:
        one.close()
    data = [{"b64_json": found[number], "seed": record.seed} for number, record in enumerate(records)]
    usage = _usage(served, records)
    return JSONResponse({"created": int(time.time()), "data": data, **_shape(records[0]), "usage": usage})


def streamed(served: Served, asked: PicturesAsked, records: list[PictureRecord]) -> Response:
    """Each picture as server-sent events in OpenAI's form: partial ones as the canvas fills, then the whole."""
    return EventStream(
        _drawn(served, records, asked.partial_images or 0),
        _chunks(served, records),
        served.settings.deadline,
    )


def _chunks(served: Served, records: list[PictureRecord]) -> Chunks:
    async def chunks(one: Running) -> AsyncGenerator[bytes, None]:
        frames = [0] * len(records)
        async for number, drawn in one.events():
            assert isinstance(drawn, Frame | Drawn)
            record = records[number]
            told: dict[str, Any] = {
                "b64_json": await _encoded(drawn.pixels, record if isinstance(drawn, Drawn) else None),
                "created_at": int(time.time()),
                "image_index": number,
                "seed": record.seed,
                **_shape(record),
            }
            if isinstance(drawn, Frame):
                told |= {"type": "image_generation.partial_image", "partial_image_index": frames[number]}
                told |= {"steps_done": drawn.done, "steps": drawn.total}
                frames[number] += 1
            else:
                told |= {"type": "image_generation.completed", "usage": _usage(served, records)}
            yield event(told, told["type"])

    return chunks


def _drawn(served: Served, records: list[PictureRecord], frames: int) -> Running:
    """Raises Refused (429)."""
    text, stride = served.trained.text, served.trained.autoencoder.stride
    prompt = tuple(text.generation_prompt(records[0].caption))
    against = tuple(text.generation_prompt(records[0].negative))

    def add(tell: Callable[[int], Tell]) -> list[Drawing]:
        subjects = [
            Subject(prompt, against, (one.height // stride, one.width // stride), one.seed, one.sampling)
            for one in records
        ]
        jobs = [Drawing(tell(number), subject=one, frames=frames) for number, one in enumerate(subjects)]
        served.engine.draw(jobs)
        return jobs

    return Running(add)


def _sampling(served: Served, asked: PicturesAsked) -> SamplingConfig:
    limits = served.settings
    if (asked.steps or 0) > limits.ar_steps:
        raise _refused("steps", f"at most {limits.ar_steps} AR steps")
    if (asked.diffusion_steps or 0) > limits.diffusion_steps:
        raise _refused("diffusion_steps", f"at most {limits.diffusion_steps}")
    changes = {
        "ar_steps": asked.steps,
        "cfg": asked.guidance,
        "diffusion_steps": None if asked.diffusion_steps is None else str(asked.diffusion_steps),
        "temperature": asked.temperature,
    }
    how = served.sampling.model_copy(update={name: value for name, value in changes.items() if value is not None})
    if asked.negative_prompt is not None and how.cfg == 1:
        raise _refused("negative_prompt", "it says what guidance leads away from, and guidance 1 is none")
    return how


async def _encoded(pixels: NDArray[np.uint8], record: PictureRecord | None) -> str:
    """PNG in base64; with a record, one that says how to draw it again."""
    return await to_thread.run_sync(_encode, pixels, record)


def _encode(pixels: NDArray[np.uint8], record: PictureRecord | None) -> str:
    return base64.b64encode(png(pixels, record, "harmon serve")).decode("ascii")


def _shape(record: PictureRecord) -> dict[str, str]:
    return {
        "size": f"{record.width}x{record.height}",
        "output_format": "png",
        "quality": "auto",
        "background": "opaque",
    }


def _usage(served: Served, records: list[PictureRecord]) -> dict[str, Any]:
    """Tokens of the prompt, and of the pictures' grids."""
    read = len(served.trained.text.generation_prompt(records[0].caption))
    stride, config = served.trained.autoencoder.stride, served.trained.model.config
    drawn = sum(config.tokens(one.height // stride, one.width // stride) for one in records)
    details = {"text_tokens": read, "image_tokens": 0}
    return {
        "input_tokens": read,
        "output_tokens": drawn,
        "total_tokens": read + drawn,
        "input_tokens_details": details,
    }


def _refused(field: str, why: str) -> Refused:
    return Refused(400, f"{field}: {why}.", param=field, code="invalid_value")
