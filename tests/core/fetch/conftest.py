"""The fixtures: a site, and one place to fetch from for each scheme."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from fetch_places import FilePlace, HttpPlace, S3Place, Site, open_site, relay
from moto.server import ThreadedMotoServer


@pytest.fixture
def site() -> Iterator[Site]:
    with open_site() as site:
        yield site


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def objects(moto_url: str) -> Iterator[Any]:
    """A client of moto, with the two buckets made."""
    client = boto3.client(
        "s3",
        endpoint_url=moto_url,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    client.create_bucket(Bucket="pictures")
    client.create_bucket(Bucket="private")
    yield client
    client.close()


@pytest.fixture
def file_place(tmp_path: Path) -> FilePlace:
    return FilePlace(tmp_path)


@pytest.fixture
def http_place(site: Site) -> HttpPlace:
    return HttpPlace(site)


@pytest.fixture
def s3_place(site: Site, moto_url: str, objects: Any, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    site.otherwise = lambda visit: relay(visit, moto_url)
    return S3Place(site, objects)
