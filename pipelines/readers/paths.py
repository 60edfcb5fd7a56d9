"""Names inside archives and records, which come from strangers."""

from pathlib import PurePosixPath

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})


class BadPath(Exception):
    """A name that would leave its folder, or is none."""


def clean_path(name: str) -> str:
    """`name` with `./` and double slashes taken out. Raises BadPath for absolute names and those that climb."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise BadPath(f"{name[:200]!r} is no name below a folder")
    return "/".join(parts)


def is_image_name(name: str) -> bool:
    """Whether a file's ending is that of an image."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES
