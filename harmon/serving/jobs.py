"""What the engine is asked to do, and what it tells of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harmon.serving.canvases import Subject
from harmon.serving.speeches import Ending, Speech


@dataclass(frozen=True)
class Frame:
    """A picture after `done` of `total` AR steps, uint8 [H, W, 3]: what is known so far, decoded."""

    done: int
    total: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """A finished picture, uint8 [H, W, 3]."""

    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Spoken:
    """The next tokens of an answer, and how it has ended, if it has."""

    tokens: tuple[int, ...]
    ending: Ending | None


@dataclass(frozen=True)
class Failed:
    """The work could not be done; the server's log says why."""


Event = Frame | Drawn | Spoken | Failed


@dataclass(eq=False)
class Job:
    """`tell` is called by the engine's thread, with the last event when the work is done or has failed."""

    tell: Callable[[Event], None]
    cancelled: bool = False
    """Set by whoever waits for it, at any time: the engine drops it at the next step."""
    asked: float = field(default_factory=time.monotonic)
    begun: float = 0.0


@dataclass(eq=False)
class Drawing(Job):
    subject: Subject = field(kw_only=True)
    frames: int = field(kw_only=True, default=0)
    """Partial pictures that are told, evenly over the AR steps."""


@dataclass(eq=False)
class Speaking(Job):
    speech: Speech = field(kw_only=True)
