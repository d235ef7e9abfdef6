"""Credentials for Google Cloud Storage, as google-auth finds them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from embedstream_core.errors import MissingExtra, SystemicError
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.settings import FetchPolicy
from fetch_places import Visit
from store_places import GsPlace


def test_one_token_serves_all_references(gs_place: GsPlace, google_key: Path) -> None:
    shown: list[str] = []

    def page(visit: Visit) -> None:
        shown.append(visit.headers["Authorization"])
        visit.answer(200, b"bytes")

    gs_place.site.pages[gs_place.request.format("a")] = page
    with open_fetcher(gs_place.policy) as fetcher:
        assert {fetcher.fetch(gs_place.refer("a")) for _ in range(3)} == {b"bytes"}
    assert shown == ["Bearer canary"] * 3
    assert gs_place.site.requests.count("/token") == 1


def test_the_project_that_pays_is_sent(gs_place: GsPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "images-project")
    paid: list[str | None] = []

    def page(visit: Visit) -> None:
        paid.append(visit.headers["x-goog-user-project"])
        visit.answer(200, b"bytes")

    gs_place.site.pages[gs_place.request.format("a")] = page
    with open_fetcher(gs_place.policy) as fetcher:
        fetcher.fetch(gs_place.refer("a"))
    assert paid == ["images-project"]


@pytest.mark.parametrize("path", ["/token", "/storage/v1/b/pictures/o/key"])
def test_refused_credentials_are_systemic(gs_place: GsPlace, path: str) -> None:
    refusal = json.dumps({"error": "invalid_grant", "error_description": "Invalid JWT"}).encode()
    gs_place.site.pages[path] = lambda visit: visit.answer(
        401, refusal, Content_Type="application/json"
    )
    with (
        open_fetcher(gs_place.policy) as fetcher,
        pytest.raises(SystemicError, match="credentials") as caught,
    ):
        fetcher.fetch(gs_place.refer("key"))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{}", "no JSON", '{"type": "service_account"}'])
def test_credentials_that_are_missing_or_broken_are_systemic(
    gs_place: GsPlace, google_key: Path, text: str | None
) -> None:
    if text is None:
        google_key.unlink()
    else:
        google_key.write_text(text, encoding="utf-8")
    with (
        open_fetcher(gs_place.policy) as fetcher,
        pytest.raises(SystemicError, match="no credentials for Google Cloud Storage"),
    ):
        fetcher.fetch(gs_place.refer("key"))
    assert gs_place.connections() == 0


def test_a_key_that_is_a_folder_is_systemic(gs_place: GsPlace, google_key: Path) -> None:
    google_key.unlink()
    google_key.mkdir()
    with (
        open_fetcher(gs_place.policy) as fetcher,
        pytest.raises(SystemicError, match="Google Cloud Storage: IsADirectoryError: Is a dir"),
    ):
        fetcher.fetch(gs_place.refer("key"))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.auth.transport.requests", None)
    with pytest.raises(MissingExtra, match=r"embedstream\[gs\]"):
        open_fetcher(FetchPolicy(buckets=("gs://pictures",)))
