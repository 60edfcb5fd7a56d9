"""How much a server takes on, from whom it does not know."""

from pydantic import Field

from pipelines.settings import Settings


class ServingSettings(Settings):
    """Batch sizes and bounds of one server. The defaults fit `harmon-0.5b` on one GPU of 24 GB, or a demo on a CPU."""

    name: str = Field(default="harmon", min_length=1, max_length=128)
    """The model's name in requests and answers."""
    pictures: int = Field(default=32, ge=1)
    """Pictures drawn together."""
    answers: int = Field(default=32, ge=1)
    """Answers spoken together."""
    queue: int = Field(default=64, ge=0)
    """Pictures, and as many answers, that may wait beyond those; the next request is told to come again (429)."""
    body_bytes: int = Field(default=20 << 20, ge=1)
    """Of one request's body; beyond it 413."""
    held_bytes: int = Field(default=256 << 20, ge=1)
    """Of all bodies that are being received and read at a time; beyond it 429."""
    shown_pixels: int = Field(default=25_000_000, ge=1)
    """Of a picture that is asked about, judged from its header."""
    drawn_pixels: int = Field(default=1024 * 1024, ge=1)
    """Of a picture that is drawn."""
    count: int = Field(default=8, ge=1)
    """Pictures of one request."""
    text_chars: int = Field(default=50_000, ge=1)
    """Of all text of a request, judged before it is cut into tokens."""
    context_tokens: int = Field(default=4096, ge=1)
    """Of a prompt, its picture included, and its answer; the model's own bound holds too."""
    answer_tokens: int = Field(default=1024, ge=1)
    """Of one answer."""
    ar_steps: int = Field(default=256, ge=1)
    diffusion_steps: int = Field(default=250, ge=1, le=1000)
    frames: int = Field(default=32, ge=0)
    """Partial pictures that a stream may ask for; each costs a decoding."""
    deadline: float = Field(default=300.0, gt=0)
    """Seconds that a request's work may take, its time in the queue included; then it is stopped (504)."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Seconds in which a request's body must have arrived (408)."""
