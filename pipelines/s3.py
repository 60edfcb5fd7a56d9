"""A dataset in an S3 bucket: the same create-if-absent, by conditional writes; reads by byte range.

Credentials, region and endpoint come from where every AWS program takes them: the environment, ~/.aws, the
instance's role (boto3's chain), AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3.
"""

import base64
import contextlib
import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipelines.errors import HarmonError
from pipelines.location import S3Url
from pipelines.ranged import RangedFile, RangedView
from pipelines.storage import ByteView, Store, StoredFile, Upload

SINGLE = 32 << 20  # bytes of a file up to which one PutObject writes it; bytes in memory always go in one
PART = 16 << 20  # bytes of a part of a larger one; Amazon S3 wants at least 5 MiB
MAX_PARTS = 10_000  # Amazon S3 User Guide, "Multipart upload limits"
AHEAD = 8 << 20  # bytes fetched at once when a file is read in order
PARALLEL = 4  # parts under way at a time
ATTEMPTS = 8  # tries at a request, with growing pauses; the client makes them
READS = 4  # tries at a body that breaks off
CONFLICTS = 8  # tries while another writer of the same name is under way (409)

log = logging.getLogger(__name__)

_making = threading.Lock()


class S3Store(Store):
    """The objects below a prefix. Conditional writes are what the server must offer (If-None-Match: *)."""

    root: S3Url
    lag = 1.0  # a listing is a paid request of tens of milliseconds; commits never rely on an old one

    def __init__(self, root: S3Url) -> None:
        self.root = root

    @property
    def _s3(self) -> Any:
        with _making:  # threads that come first at once make one client
            return _client(os.getpid(), _endpoint())

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self.root.bucket, "Key": (self.root / self.checked(path)).prefix}

    # Writing

    def put(self, path: str, source: bytes | Path) -> StoredFile:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        digest = hashlib.sha256()
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
            while chunk := stream.read(PART):
                digest.update(chunk)
            whole = isinstance(source, bytes) or size <= SINGLE
            return self._create(path, stream, size, digest.hexdigest(), whole)

    def take(self, path: str, source: Path, sha256: str) -> StoredFile:
        with source.open("rb") as stream:
            size = source.stat().st_size
            stored = self._create(path, stream, size, sha256, whole=size <= SINGLE)
        source.unlink()
        return stored

    def replace(self, path: str, data: bytes) -> None:
        with self._told(path):
            self._s3.put_object(**self._at(path), Body=data)

    def _create(self, path: str, stream: BinaryIO, size: int, sha256: str, whole: bool) -> StoredFile:
        """Create the object, or adopt an equal one. 412: the name is taken; 409: another writer is under way.

        Manifests, whose writers race with different bytes, are in memory and so `whole`: some servers decide the
        race between two completions of multipart uploads wrongly (SeaweedFS 4.48 tells both that they won).
        Writers of one data file have equal bytes.
        """
        with self._told(path):
            for attempt in range(CONFLICTS):
                stream.seek(0)
                code = self._put_whole(path, stream, sha256) if whole else self._put_parts(path, stream, size, sha256)
                if code is None:
                    return StoredFile(path, size, sha256)
                if code == 412:
                    return self._adopt(path, size, sha256)
                time.sleep(0.05 * 2**attempt)
        raise HarmonError(f"{self.where(path)} is being written by others without end (409); run the step again later")

    def _put_whole(self, path: str, stream: BinaryIO, sha256: str) -> int | None:
        """One PutObject, its checksum verified by the server; the status if the condition failed."""
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        told = base64.b64encode(bytes.fromhex(sha256)).decode()
        try:
            self._s3.put_object(**self._at(path), Body=stream.read(), IfNoneMatch="*", ChecksumSHA256=told)
        except ClientError as problem:
            return _condition(problem)
        return None

    def _put_parts(self, path: str, stream: BinaryIO, size: int, sha256: str) -> int | None:
        """A multipart upload, conditional at its completion; the status if the condition failed."""
        from botocore.exceptions import ClientError

        if self.exists(path):  # known before gigabytes are sent; the condition at completion decides races
            return 412
        upload = self._s3.create_multipart_upload(**self._at(path))["UploadId"]
        try:
            parts = self._send_parts(path, stream, upload, max(PART, -(-size // MAX_PARTS)), sha256)
            self._s3.complete_multipart_upload(
                **self._at(path), UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
        except BaseException as problem:
            with contextlib.suppress(ClientError):
                self._s3.abort_multipart_upload(**self._at(path), UploadId=upload)
            if not isinstance(problem, ClientError):
                raise
            if _status(problem) == 404 and self.exists(path):  # completed, and the answer to it was lost
                return 412
            return _condition(problem)
        return None

    def _send_parts(self, path: str, stream: BinaryIO, upload: str, size: int, sha256: str) -> list[dict[str, Any]]:
        """Send the stream in parts of `size` bytes. Raises HarmonError where it has not the told checksum."""
        digest = hashlib.sha256()
        parts: list[dict[str, Any]] = []

        def send(number: int, data: bytes) -> dict[str, Any]:
            answer = self._s3.upload_part(**self._at(path), UploadId=upload, PartNumber=number, Body=data)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        with ThreadPoolExecutor(PARALLEL) as pool:
            while batch := [data for _ in range(PARALLEL) if (data := stream.read(size))]:
                for data in batch:
                    digest.update(data)
                parts += pool.map(send, range(len(parts) + 1, len(parts) + 1 + len(batch)), batch)
        if digest.hexdigest() != sha256:
            raise HarmonError(f"what is to become {self.where(path)} changed after its writing; run the step again")
        return parts

    def _adopt(self, path: str, size: int, sha256: str) -> StoredFile:
        """Equal bytes are our own put that had succeeded, or a killed attempt's."""
        there = self.sha256(path)
        if there != sha256:
            raise self.other(path, there, sha256)
        log.debug("adopted %s from an earlier attempt", self.where(path))
        return StoredFile(path, size, sha256)

    def remove(self, path: str) -> None:
        with self._told(path):
            self._s3.delete_object(**self._at(path))

    # Reading

    def read(self, path: str) -> bytes:
        return self._get(path)

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, which is not empty there."""
        return self._get(path, Range=f"bytes={start}-{end - 1}")

    def _get(self, path: str, **what: str) -> bytes:
        """One GetObject; a body that breaks off is asked for again (the client retries answers, not bodies)."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        with self._told(path):
            for attempt in range(READS):
                try:
                    data: bytes = self._s3.get_object(**self._at(path), **what)["Body"].read()
                    return data
                except (HTTPClientError, IncompleteReadError):
                    if attempt == READS - 1:
                        raise
                    time.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, RangedFile(self.view(path), self.where(path)))

    def readable(self, path: str) -> BinaryIO:
        return cast(BinaryIO, RangedFile(self._view(path, ahead=0), self.where(path)))

    def view(self, path: str) -> ByteView:
        return self._view(path, AHEAD)

    def _view(self, path: str, ahead: int) -> RangedView:
        size = self.size(path)
        if size is None:
            raise HarmonError(f"{self.where(path)} is absent; run `harmon audit`")
        return RangedView(partial(self.fetch, path), size, ahead, self.where(path))

    def size(self, path: str) -> int | None:
        from botocore.exceptions import ClientError

        with self._told(path):
            try:
                length: int = self._s3.head_object(**self._at(path))["ContentLength"]
                return length
            except ClientError as problem:
                if _status(problem) == 404:
                    return None
                raise

    def sizes(self, folder: str = "") -> dict[str, int | None]:
        place = self.root / self.checked(folder) if folder else self.root
        prefix = f"{place.prefix}/" if place.prefix else ""
        skip = len(f"{self.root.prefix}/") if self.root.prefix else 0
        found: dict[str, int | None] = {}
        with self._told(folder):
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=prefix):
                found |= {one["Key"][skip:]: one["Size"] for one in page.get("Contents", ())}
        return dict(sorted((path, size) for path, size in found.items() if path and not path.endswith("/")))

    def is_there(self) -> bool:
        prefix = f"{self.root.prefix}/" if self.root.prefix else ""
        with self._told(""):
            answer = self._s3.list_objects_v2(Bucket=self.root.bucket, Prefix=prefix, MaxKeys=1)
        return bool(answer.get("Contents"))

    def folders(self) -> list[str]:
        prefix = f"{self.root.prefix}/" if self.root.prefix else ""
        found: list[str] = []
        with self._told(""):
            pages = self._s3.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.root.bucket, Prefix=prefix, Delimiter="/"):
                found += [one["Prefix"][len(prefix) :].rstrip("/") for one in page.get("CommonPrefixes", ())]
        return sorted(name for name in found if name not in ("", ".", ".."))

    # What an attempt leaves

    def uploads(self) -> list[Upload]:
        prefix = f"{self.root.prefix}/" if self.root.prefix else ""
        found: list[Upload] = []
        with self._told(""):
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self.root.bucket, Prefix=prefix)
            for page in pages:
                found += [
                    Upload(one["Key"][len(prefix) :], one["UploadId"], one["Initiated"])
                    for one in page.get("Uploads", ())
                ]
        return found

    def drop_upload(self, upload: Upload) -> None:
        from botocore.exceptions import ClientError

        with self._told(upload.path):
            try:
                self._s3.abort_multipart_upload(**self._at(upload.path), UploadId=upload.id)
            except ClientError as problem:
                if _status(problem) != 404:
                    raise

    def local(self, path: str) -> Path:
        raise HarmonError(f"{self.where(path)} is on no local disk; read it through the store, or copy it here first")

    def work(self, folder: str) -> Path:
        """Below HARMON_SCRATCH, else the user's cache folder: a place of its own for each dataset and server."""
        base = os.environ.get("HARMON_SCRATCH") or Path(
            os.environ.get("XDG_CACHE_HOME", "~/.cache"), "harmon", "scratch"
        )
        place = hashlib.sha256(f"{_endpoint()}\n{self.root}".encode()).hexdigest()[:16]
        return Path(base).expanduser().absolute() / place / self.checked(folder)

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Whatever the S3 client raises, as one sentence."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as problem:
            advice = {
                403: "give these credentials the right to read, write and list there",
                404: "run `harmon audit`",
            }.get(_status(problem), "see to the bucket and run again")
            name, said = problem.response["Error"].get("Code"), problem.response["Error"].get("Message", "")
            raise HarmonError(f"{self.where(path)}: S3 answered {name} ({said.rstrip('.')}); {advice}") from problem
        except BotoCoreError as problem:
            said = str(problem).rstrip(".")
            raise HarmonError(
                f"{self.where(path)} cannot be reached: {said}; check AWS_ENDPOINT_URL, region and credentials"
            ) from problem


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@lru_cache(maxsize=4)
def _client(pid: int, endpoint: str) -> Any:
    """One client a process, which its threads share; a fork gets connections of its own."""
    from boto3.session import Session
    from botocore.config import Config  # type: ignore[import-untyped]

    settings = Config(
        retries={"mode": "standard", "max_attempts": ATTEMPTS},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
    )
    return Session().client("s3", config=settings)


def _status(problem: Any) -> int:
    return int(problem.response["ResponseMetadata"]["HTTPStatusCode"])


def _condition(problem: Any) -> int:
    """409 or 412 of a conditional write; any other answer is raised."""
    status = _status(problem)
    if status not in (409, 412):
        raise problem
    return status
