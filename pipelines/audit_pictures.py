"""Audit of pictures: a chosen share of a shard's images decoded whole, and compared with their rows."""

import io
import warnings
from collections.abc import Iterator, Sequence

from PIL import Image

from pipelines.columns import read_columns
from pipelines.dataset import Dataset
from pipelines.findings import Finding, found
from pipelines.manifest import FileEntry
from pipelines.normalise import BROKEN, EXTENSIONS, Limits

MAX_PIXELS = Limits().max_pixels  # what the download step lets in; judged before anything is decoded


def is_chosen(key: str, share: float) -> bool:
    """Whether a sample belongs to the share that is decoded: by its key, so the same ones each time."""
    return int(key[-8:], 16) < share * 2**32


def check_pictures(
    dataset: Dataset, entry: FileEntry, samples: Sequence[tuple[int, str]], source: FileEntry, share: float
) -> Iterator[Finding]:
    """Decode the chosen images of one shard; one finding for each that fails, or is not as its row says."""
    chosen = [place for place, (_, key) in enumerate(samples) if is_chosen(key, share)]
    if not chosen:
        return
    rows = read_columns(dataset.store.readable(source.path), ["key", "ext", "width", "height"]).to_pylist()
    told = {row["key"]: row for row in rows}
    shard = dataset.images(entry.shard)
    for place in chosen:
        key, extension, data, _ = shard.raw(place)
        row = told.get(key, {})
        problem = decoding_problem(data, extension, (row.get("width"), row.get("height")))
        if not problem and row.get("ext") not in (None, extension):
            problem = f"its row says {row['ext']}"
        if problem:
            yield found("image_damaged", entry.path, f"{key}.{extension}: {problem}")
    shard.close()


def decoding_problem(data: bytes, extension: str, size: tuple[int | None, int | None]) -> str | None:
    """Why these bytes are not the picture that they should be, or None. `size`: width and height, None if unknown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow could mend is judged by whether it decodes
        try:
            with Image.open(io.BytesIO(data)) as picture:
                if EXTENSIONS.get(picture.format or "") != extension:
                    return f"it holds {picture.format}"
                if picture.width * picture.height > MAX_PIXELS:
                    return f"it has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}"
                if any(told is not None and told != seen for told, seen in zip(size, picture.size)):
                    return f"it is {picture.width} x {picture.height}, its row says {size[0]} x {size[1]}"
                picture.load()
        except BROKEN as problem:
            return f"it does not decode ({problem})"
    return None
