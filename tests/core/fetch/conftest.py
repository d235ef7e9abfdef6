"""The fixtures: a site, and one place to fetch from for each scheme."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from azurite import KEY, Azurite, open_azurite
from fetch_places import FilePlace, HttpPlace, Site, open_site
from google_emulator import create_private_key, open_google_emulator
from object_storage import KEYS, open_object_storage
from store_places import AzurePlace, GsPlace, S3Place, relay, write_google_key


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


@pytest.fixture(scope="session")
def google_emulator() -> Iterator[str]:
    with open_google_emulator("pictures", "private") as url:
        yield url


@pytest.fixture(scope="session")
def private_key() -> str:
    return create_private_key()


@pytest.fixture
def google_key(
    site: Site, private_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The file of a service account's key, which the environment names; the site gives tokens."""
    path = tmp_path / "key.json"
    path.write_text(write_google_key(site, private_key), encoding="utf-8")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return path


@pytest.fixture
def gs_place(site: Site, google_emulator: str, google_key: Path) -> GsPlace:
    site.otherwise = lambda visit: relay(visit, google_emulator)
    return GsPlace(site, google_emulator)


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    with open_azurite("pictures", "private") as azurite:
        yield azurite


@pytest.fixture
def azure_place(site: Site, azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> AzurePlace:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    site.otherwise = lambda visit: relay(visit, azurite.url)
    return AzurePlace(site, azurite)
