"""Where a dataset lies: a local folder, or a prefix of an S3 bucket."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigurationError

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # how a URL begins, as a part of a path: Path takes // for /
S3 = re.compile(r"s3:/{1,2}([^/]+)/?(.*)")  # one slash where a URL went through Path
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")  # Amazon S3 User Guide, "Bucket naming rules"


@dataclass(frozen=True)
class S3Url:
    """s3://bucket/prefix, with as much of Path's vocabulary as a dataset's root needs."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty for the whole bucket."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __truediv__(self, name: str) -> "S3Url":
        return S3Url(self.bucket, f"{self.prefix}/{name}".strip("/"))

    @property
    def name(self) -> str:
        """The last part, which names the dataset."""
        return self.prefix.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "S3Url":
        """The prefix one level up; the bucket is its own."""
        return S3Url(self.bucket, self.prefix.rpartition("/")[0])

    def absolute(self) -> "S3Url":
        """Itself: a URL is no relative name."""
        return self


Location = Path | S3Url


def location(name: str | Path | S3Url) -> Location:
    """The place that `name` means.

    Raises ConfigurationError for another scheme than s3 and for what cannot be a bucket or prefix.
    """
    if isinstance(name, S3Url):
        return name
    if match := S3.fullmatch(str(name)):
        parts = match[2].rstrip("/").split("/") if match[2].rstrip("/") else []
        if not BUCKET.fullmatch(match[1]) or any(part in ("", ".", "..") for part in parts):
            raise ConfigurationError(f"{name} names no place in S3; write it as s3://bucket/prefix")
        return S3Url(match[1], "/".join(parts))
    path = Path(name)
    if any(SCHEME.fullmatch(part) for part in path.parts):
        raise ConfigurationError(f"{name} is no place for a dataset; name a local folder or s3://bucket/prefix")
    return path
