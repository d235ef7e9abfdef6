"""Buckets with S3's interface, for tests."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import boto3
from botocore.exceptions import EndpointConnectionError
from moto.server import ThreadedMotoServer

__all__ = ["KEYS", "REGION", "open_object_storage", "open_object_storage_process"]

REGION = "us-east-1"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-too"}


@contextmanager
def open_object_storage() -> Iterator[tuple[str, Any]]:
    """The address of moto on a free port, and a client of it; there is no bucket yet."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        with closing(_connect(url)) as client:
            yield url, client
    finally:
        server.stop()


@contextmanager
def open_object_storage_process() -> Iterator[tuple[str, Any]]:
    """The same in a process of its own.

    deltalake holds the interpreter's lock while it opens a file, and moto could not answer.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            with closing(_connect(url)) as client:
                _wait_for(client)
                yield url, client
        finally:
            process.kill()


def _connect(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


def _wait_for(client: Any) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.list_buckets()
            return
        except EndpointConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
