"""What a person wants to see of a flow run in the Prefect UI beside its progress: what left a dataset at which step
and why, sample pictures, the page to open, and the numbers that a command prints."""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact

from flows.progress import artifact_key
from pipelines.dataset import Dataset
from pipelines.manifest import IMAGES, Commit
from pipelines.page import thumbnail

COLUMNS, ROWS, SIDE = 6, 3, 128  # of the sheet of sample pictures; about 60 kB, since the server's database keeps it
QUALITY = 80


def show_made(made: Dataset | Path) -> None:
    """The artifacts of what a step has made."""
    if isinstance(made, Path):
        show_page(made)
        return
    show_funnel(made)
    show_pictures(made)


def show_funnel(dataset: Dataset) -> None:
    """A table with a row for each commit of `dataset`."""
    create_table_artifact(
        table=[_passage(commit) for commit in dataset.commits()],
        key=artifact_key(f"funnel-{dataset.name}"),
        description=f"What came in and went out of {dataset.root} at each of its steps, and why rows left or failed.",
    )


def _passage(commit: Commit) -> dict[str, Any]:
    lost = {**commit.rejected, **commit.failed}
    reasons = sorted(lost.items(), key=lambda one: -one[1])
    return {
        "commit": commit.number,
        "step": commit.step,
        "rows in": commit.rows_in,
        "rows out": commit.rows_out,
        "left or failed": sum(lost.values()),
        "because of": ", ".join(f"{reason} {count:,}" for reason, count in reasons) or "nothing",
    }


def show_pictures(dataset: Dataset) -> None:
    """One image with the first pictures of `dataset`; none where it has no pictures."""
    from PIL import Image

    sheet = Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE), "white")
    number = -1
    for number, data in enumerate(_first_pictures(dataset, COLUMNS * ROWS)):
        try:
            small = Image.open(io.BytesIO(thumbnail(data, "", side=SIDE - 4).data))
        except OSError:  # one that cannot be decoded leaves its place white
            continue
        sheet.paste(small, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    if number < 0:
        return
    out = io.BytesIO()
    sheet.crop((0, 0, sheet.width, (number // COLUMNS + 1) * SIDE)).save(out, "JPEG", quality=QUALITY)
    create_image_artifact(
        image_url=f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}",
        key=artifact_key(f"pictures-{dataset.name}"),
        description=f"The first pictures of {dataset.root}; `harmon show` makes a page of more.",
    )


def _first_pictures(dataset: Dataset, most: int) -> Iterator[bytes]:
    for entry in dataset.entries(IMAGES):
        with_images = dataset.images(entry.shard)
        taken = min(most, len(with_images))
        yield from (with_images.read(row).data for row in range(taken))
        with_images.close()
        most -= taken
        if not most:
            return


def show_page(path: Path) -> None:
    """A link to a page on the disk of whoever ran the flow."""
    path = path.absolute()
    create_link_artifact(
        link=path.as_uri(),
        link_text=str(path),
        key=artifact_key(f"page-{path.parent.name}-{path.stem}"),
        description="A page on the disk that the flow ran on.",
    )


def show_result(name: str, said: Mapping[str, Any]) -> None:
    """A table of what a command printed, nested values by their path."""
    create_table_artifact(
        table=[{"what": what, "value": value} for what, value in _flat(said, "")],
        key=artifact_key(f"result-{name}"),
        description=f"What `harmon {name}` says of its result.",
    )


def _flat(said: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(said, Mapping) and said:
        for key, value in said.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, said if isinstance(said, int | float | str) else str(said)
