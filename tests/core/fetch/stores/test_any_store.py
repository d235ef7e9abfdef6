"""What holds for every object store: names, limits, pauses, compressed and broken responses."""

from __future__ import annotations

import gzip
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import pyarrow as pa
import pytest

from embedstream_core.errors import Code, EmbedstreamError, ItemError, SystemicError, TransientError
from embedstream_core.fetch.fetcher import open_fetcher
from fetch_places import MAX_BYTES, Page, Visit
from store_places import AzurePlace, StorePlace

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=["s3", "gs", "azure"])
def place(request: pytest.FixtureRequest) -> StorePlace:
    found: StorePlace = request.getfixturevalue(f"{request.param}_place")
    return found


def test_a_key_is_used_as_written(place: StorePlace) -> None:
    keys = [
        *["a b.jpg", "a#b?c.jpg", "100%25.jpg", "a%2Fb", "ü/é.jpg", "a//b", "x@y", "a+b", "a&b=c"],
        *["a;b,c!(d)'e*$", "~a_b-c.d", "a:b", ".hidden", "a..b/...", "[1]{2}.jpg"],
    ]
    uris = {key: place.put(key, key.encode()) for key in keys}
    with open_fetcher(place.policy) as fetcher:
        assert {key: fetcher.fetch(uri).decode() for key, uri in uris.items()} == dict(
            zip(keys, keys, strict=True)
        )


def test_a_key_that_a_proxy_may_resolve_is_denied(place: StorePlace) -> None:
    place.outside()
    with open_fetcher(place.policy) as fetcher:
        for key in ("", "../private/secret", "./key", "a/..", "a/./b"):
            with pytest.raises(ItemError) as caught:
                fetcher.fetch(place.refer(key))
            assert caught.value.code is Code.REFERENCE_DENIED
    assert place.connections() == 0


def requests_of(place: StorePlace, name: str) -> list[str]:
    return [path for path in place.site.requests if path.startswith(place.request.format(name))]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_respected(place: StorePlace, status: int) -> None:
    busy = b"<Error><Code>SlowDown</Code></Error>"
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
    pages: Iterator[Page] = iter(
        [
            lambda visit: visit.answer(status, busy, Retry_After="3"),
            lambda visit: visit.answer(status, busy, Retry_After=soon),
            lambda visit: visit.answer(200, b"bytes"),
        ]
    )
    pauses: list[float] = []
    place.site.pages[place.request.format("a")] = lambda visit: next(pages)(visit)
    with open_fetcher(place.policy) as fetcher:
        fetcher.sleep = pauses.append
        assert fetcher.fetch(place.refer("a")) == b"bytes"
    assert pauses[0] == 3
    assert 1 < pauses[1] < 5


def test_a_pause_beyond_the_deadline_fails_at_once(place: StorePlace) -> None:
    place.site.pages[place.request.format("a")] = lambda visit: visit.answer(
        503, Retry_After="3600"
    )
    with (
        open_fetcher(place.policy) as fetcher,
        pytest.raises(
            TransientError, match=r"answered 503.* asks for a pause of 3600 s; .* no time"
        ),
    ):
        fetcher.fetch(place.refer("a"))
    assert len(requests_of(place, "a")) == 1


def test_a_response_without_a_length_is_read_and_limited(place: StorePlace) -> None:
    start = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    large = b"3e9\r\n" + b"." * 1001 + b"\r\n0\r\n\r\n"
    pages = place.site.pages
    pages[place.request.format("a")] = lambda visit: visit.raw(start + b"1\r\n.\r\n0\r\n\r\n")
    pages[place.request.format("b")] = lambda visit: visit.raw(start + large)
    with open_fetcher(place.policy) as fetcher:
        assert fetcher.fetch(place.refer("a")) == b"."
        with pytest.raises(ItemError) as caught:
            fetcher.fetch(place.refer("b"))
    assert caught.value.code is Code.REFERENCE_TOO_LARGE


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("aws-chunked", b"bytes"),
        ("gzip", gzip.compress(b"bytes")),
        ("aws-chunked,gzip", gzip.compress(b"bytes")),
        ("zstd", pa.compress(b"bytes", "zstd", asbytes=True)),
    ],
    ids=["in-chunks", "gzip", "gzip-in-chunks", "zstd"],
)
def test_a_stored_encoding(place: StorePlace, encoding: str, body: bytes) -> None:
    place.site.pages[place.request.format("a")] = lambda visit: visit.answer(
        200, body, Content_Encoding=encoding
    )
    with open_fetcher(place.policy) as fetcher:
        assert fetcher.fetch(place.refer("a")) == b"bytes"


def test_a_bomb_ends_at_the_limit(place: StorePlace) -> None:
    bomb = gzip.compress(bytes(MAX_BYTES * 100))
    assert len(bomb) < MAX_BYTES
    place.site.pages[place.request.format("a")] = lambda visit: visit.answer(
        200, bomb, Content_Encoding="gzip"
    )
    with open_fetcher(place.policy) as fetcher, pytest.raises(ItemError) as caught:
        fetcher.fetch(place.refer("a"))
    assert caught.value.code is Code.REFERENCE_TOO_LARGE


@pytest.mark.parametrize("raw", [OK + b"Content-Length: 100\r\n\r\nshort", b""])
def test_a_broken_response_is_retried(place: StorePlace, raw: bytes) -> None:
    place.site.pages[place.request.format("broken")] = lambda visit: visit.raw(raw)
    with open_fetcher(place.policy) as fetcher, pytest.raises(TransientError) as caught:
        fetcher.fetch(place.refer("broken"))
    assert caught.value.code is Code.REFERENCE_UNREADABLE
    assert len(requests_of(place, "broken")) == 3


def test_a_port_without_a_server_is_an_outage(place: StorePlace) -> None:
    policy = replace(place.policy, outage_after=2)
    policy = replace(policy, **{place.endpoint: "http://127.0.0.1:1"})  # type: ignore[arg-type]
    with open_fetcher(policy) as fetcher:
        with pytest.raises(TransientError) as caught:
            fetcher.fetch(place.refer("key"))
        with pytest.raises(SystemicError, match="an outage: 2 references"):
            fetcher.fetch(place.refer("key"))
    assert caught.value.code is Code.REFERENCE_UNREADABLE


def test_a_dripping_response_ends_in_time(place: StorePlace) -> None:
    start = OK + b"Content-Length: 900\r\n\r\n"
    place.site.pages[place.request.format("drip")] = lambda visit: visit.drip(
        itertools.chain([start], itertools.repeat(b".")), 0.1
    )
    policy = replace(place.policy, timeout_s=0.5)
    with open_fetcher(policy) as fetcher, pytest.raises(TransientError) as caught:
        fetcher.fetch(place.refer("drip"))
    assert caught.value.code is Code.REFERENCE_TIMEOUT


def test_another_status_is_an_error_without_a_secret(
    place: StorePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """The text has neither the key nor a token, and a redirect is not followed."""
    caplog.set_level(logging.DEBUG, logger="embedstream_core")
    statuses = [204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 409, 410, 416, 429, 500, 503]
    policy = replace(place.policy, attempts=1, outage_after=None)
    with open_fetcher(policy) as fetcher:
        for status in statuses:
            place.site.pages[place.request.format("canary")] = partial(
                Visit.answer, status=status, Location=f"{place.site.url}/elsewhere?sig=canary"
            )
            with pytest.raises(EmbedstreamError) as caught:
                fetcher.fetch(place.refer("canary"))
            assert "canary" not in f"{caught.value}{caplog.text}"
    assert "/elsewhere" not in "".join(place.site.requests)


def test_a_bucket_of_another_store_stays_closed(place: StorePlace) -> None:
    """One name in three stores and two accounts: only the one that the policy names is opened."""
    place.put("key", b"bytes")
    own = place.root.format("pictures")
    roots = {
        "s3://pictures": "s3://pictures",
        "s3a://pictures": "s3://pictures",
        "gs://pictures": "gs://pictures",
        "az://pictures": AzurePlace.root.format("pictures"),
        AzurePlace.root.format("pictures"): AzurePlace.root.format("pictures"),
        "abfss://pictures@other.dfs.core.windows.net": "",
        f"{own}2": "",
        own.replace("pictures", "Pictures"): "",
    }
    with open_fetcher(place.policy) as fetcher:
        for root, store in roots.items():
            if store == own:
                assert fetcher.fetch(f"{root}/key") == b"bytes"
                continue
            with pytest.raises(ItemError, match="not allowed") as caught:
                fetcher.fetch(f"{root}/key")
            assert caught.value.code is Code.REFERENCE_DENIED
