"""Pictures that weigh what photographs weigh, and the JSON views that downloads write beside them."""

import io

import numpy as np
from PIL import Image

CAPTION = "A red tram waits before a white house with three tall windows while people cross the street."


def make_pictures(count: int, height: int, width: int, grain: float) -> list[bytes]:
    """JPEG at quality 85 of soft colours with grain, whose strength (of 255) decides the bytes; the same each time."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        colours = generator.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
        soft = Image.fromarray(colours).resize((width, height))
        grainy = np.asarray(soft, np.float32) + generator.normal(0, grain, (height, width, 1))
        out = io.BytesIO()
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
        made.append(out.getvalue())
    return made


def make_view(key: str, row: int, height: int, width: int) -> dict[str, object]:
    """The fields that a download writes beside each image."""
    return {
        "key": key,
        "source": "benchmark",
        "row_id": str(row),
        "url": f"https://pictures.example.org/2026/11/{row:08d}.jpg",
        "caption": CAPTION,
        "task": "text2image",
        "conversations": None,
        "licence": None,
        "width": width,
        "height": height,
    }
