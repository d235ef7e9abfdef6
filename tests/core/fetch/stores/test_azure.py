"""Credentials and names of Azure's storage."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest

from azurite import sign_access
from embedstream_core.errors import Code, ItemError, MissingExtra, SetupError, SystemicError
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.settings import FetchPolicy
from fetch_places import Site, Visit
from store_places import AzurePlace

HOST = "embeddings.dfs.core.windows.net"


@pytest.mark.parametrize(
    "root",
    [
        *[
            f"abfss://pictures@{HOST}",
            f"abfs://pictures@{HOST}",
            f"ABFSS://pictures@{HOST.upper()}",
        ],
        *["az://pictures", "az://pictures@embeddings.blob.core.windows.net"],
    ],
)
def test_the_names_of_one_container(azure_place: AzurePlace, root: str) -> None:
    azure_place.put("a b.jpg", b"bytes")
    with open_fetcher(azure_place.policy) as fetcher:
        assert fetcher.fetch(f"{root}/a b.jpg") == b"bytes"


def test_a_container_of_two_accounts_needs_its_account(azure_place: AzurePlace) -> None:
    buckets = (*azure_place.policy.buckets, "abfss://pictures@other.dfs.core.windows.net")
    azure_place.put("key", b"bytes")
    with open_fetcher(replace(azure_place.policy, buckets=buckets)) as fetcher:
        with pytest.raises(ItemError, match="allowed in several accounts: write abfss") as caught:
            fetcher.fetch("az://pictures/key")
        assert fetcher.fetch(f"abfss://pictures@{HOST}/key") == b"bytes"
    assert caught.value.code is Code.REFERENCE_DENIED


@pytest.mark.parametrize(
    "uri",
    [
        f"abfss://pictures:hunter2@{HOST}/key",
        f"abfss://hunter2@pictures@{HOST}/key",
        f"abfss://@{HOST}/key",
        f"wasbs://pictures@{HOST}/key",
        f"abfss:pictures@{HOST}/key",
    ],
)
def test_what_is_no_container_is_denied(azure_place: AzurePlace, uri: str) -> None:
    with open_fetcher(azure_place.policy) as fetcher, pytest.raises(ItemError) as caught:
        fetcher.fetch(uri)
    assert caught.value.code is Code.REFERENCE_DENIED
    assert "hunter2" not in caught.value.message
    assert azure_place.connections() == 0


def test_a_shared_access_signature(
    azure_place: AzurePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = azure_place.put("key", b"bytes")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "?" + sign_access(permissions="r"))
    with open_fetcher(azure_place.policy) as fetcher:
        assert fetcher.fetch(uri) == b"bytes"
    ended = sign_access(permissions="r", until="2020-01-01T00:00:00Z")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", ended)
    with (
        open_fetcher(azure_place.policy) as fetcher,
        pytest.raises(
            SystemicError, match=r"Azure answered 403 Auth.*: check the credentials"
        ) as e,
    ):
        fetcher.fetch(uri)
    assert "sig" not in str(e.value)


def test_a_wrong_key_is_systemic(azure_place: AzurePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    with (
        open_fetcher(azure_place.policy) as fetcher,
        pytest.raises(SystemicError, match=r"Azure answered 403 Auth.*: check the credentials"),
    ):
        fetcher.fetch(azure_place.put("key", b"bytes"))


def test_a_key_that_is_none_stops_the_start(
    azure_place: AzurePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "hunter2!")
    with pytest.raises(SetupError, match="base64") as caught:
        open_fetcher(azure_place.policy)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AuthorizationPermissionMismatch", Code.REFERENCE_UNREADABLE),
        (404, "ContainerNotFound", Code.REFERENCE_NOT_FOUND),
        (409, "BlobArchived", Code.REFERENCE_UNREADABLE),
        (403, "AuthenticationFailed", None),
        (403, "KeyBasedAuthenticationNotPermitted", None),
        (401, "InvalidAuthenticationInfo", None),
    ],
)
def test_final_responses(
    azure_place: AzurePlace, status: int, code: str, expected: Code | None
) -> None:
    azure_place.site.pages[azure_place.request.format("a")] = lambda visit: visit.answer(
        status, x_ms_error_code=code
    )
    with (
        open_fetcher(azure_place.policy) as fetcher,
        pytest.raises(
            (ItemError, SystemicError), match=f"Azure answered {status} {code}"
        ) as caught,
    ):
        fetcher.fetch(azure_place.refer("a"))
    assert getattr(caught.value, "code", None) is expected
    assert len(azure_place.site.requests) == 1


@pytest.fixture
def identity(site: Site, monkeypatch: pytest.MonkeyPatch) -> AzurePlace:
    """A place whose machine has a managed identity; the site is its endpoint for tokens."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY", raising=False)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{site.url}/token")
    monkeypatch.setenv("IDENTITY_HEADER", "canary-2")
    token = {
        "access_token": "canary",
        "expires_on": str(int(time.time()) + 3600),
        "resource": "https://storage.azure.com/",
        "token_type": "Bearer",
    }
    site.pages["/token"] = lambda visit: visit.answer(
        200, json.dumps(token).encode(), Content_Type="application/json"
    )
    return AzurePlace(site, None)


def test_one_token_of_a_managed_identity_serves_all_references(identity: AzurePlace) -> None:
    shown: list[str] = []

    def page(visit: Visit) -> None:
        shown.append(visit.headers["Authorization"])
        visit.answer(200, b"bytes")

    identity.site.pages[identity.request.format("a")] = page
    with open_fetcher(identity.policy) as fetcher:
        assert {fetcher.fetch(identity.refer("a")) for _ in range(3)} == {b"bytes"}
    assert shown == ["Bearer canary"] * 3
    tokens = [path for path in identity.site.requests if path.startswith("/token")]
    assert len(tokens) == 1


def test_an_identity_without_a_token_is_systemic(identity: AzurePlace) -> None:
    identity.site.pages["/token"] = lambda visit: visit.answer(
        400, b'{"error": "invalid_request"}', Content_Type="application/json"
    )
    with (
        open_fetcher(identity.policy) as fetcher,
        pytest.raises(SystemicError, match="no credentials for Azure") as caught,
    ):
        fetcher.fetch(identity.refer("a"))
    assert "canary" not in str(caught.value)


def test_a_key_serves_its_own_account_alone(
    identity: AzurePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "embeddings")
    other = "abfss://pictures@other.dfs.core.windows.net"
    shown: list[str] = []

    def page(visit: Visit) -> None:
        shown.append(visit.headers["Authorization"].partition(":")[0])
        visit.answer(200, b"bytes")

    identity.site.pages |= {f"/{name}/pictures/a": page for name in ("embeddings", "other")}
    policy = replace(identity.policy, buckets=(*identity.policy.buckets, other))
    with open_fetcher(policy) as fetcher:
        for uri in (identity.refer("a"), f"{other}/a"):
            assert fetcher.fetch(uri) == b"bytes"
    assert shown == ["SharedKey embeddings", "Bearer canary"]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(MissingExtra, match=r"embedstream\[azure\]"):
        open_fetcher(FetchPolicy(buckets=(f"abfss://pictures@{HOST}",)))
