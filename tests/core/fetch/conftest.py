"""The fixtures: a site, and one place to fetch from for each scheme."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from fetch_places import FilePlace, HttpPlace, S3Place, Site, open_site, relay
from object_storage import KEYS, open_object_storage


@pytest.fixture
def site() -> Iterator[Site]:
    with open_site() as site:
        yield site


@pytest.fixture(scope="session", autouse=True)
def _aws_data() -> Iterator[None]:
    """Let botocore read its description of S3 once, not for each client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[str, Any]]:
    """Its address and a client, with the two buckets made."""
    with open_object_storage() as (url, client):
        client.create_bucket(Bucket="pictures")
        client.create_bucket(Bucket="private")
        yield url, client


@pytest.fixture(scope="session")
def moto_url(moto: tuple[str, Any]) -> str:
    return moto[0]


@pytest.fixture
def file_place(tmp_path: Path) -> FilePlace:
    return FilePlace(tmp_path)


@pytest.fixture
def http_place(site: Site) -> HttpPlace:
    return HttpPlace(site)


@pytest.fixture
def s3_place(
    site: Site, moto: tuple[str, Any], moto_url: str, monkeypatch: pytest.MonkeyPatch
) -> S3Place:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    site.otherwise = lambda visit: relay(visit, moto_url)
    return S3Place(site, moto[1])
