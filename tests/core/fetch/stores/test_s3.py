"""Responses of S3, and errors of boto3 before a request."""

from __future__ import annotations

import gc
import time
import uuid
from dataclasses import replace

import boto3
import moto.settings
import pytest

from embedstream_core.errors import Code, ItemError, SystemicError, TransientError
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.settings import FetchPolicy
from fetch_places import Visit
from store_places import S3Place


def answer_with(place: S3Place, status: int, code: str) -> str:
    """A reference that S3 answers with this error."""
    page = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    place.site.pages["/pictures/error"] = lambda visit: visit.answer(status, page)
    return "s3://pictures/error"


@pytest.mark.parametrize("key", ["a b.jpg", "a#b?c.jpg", "100%25.jpg", "ü/é.jpg", "a//b", "x@y"])
def test_a_key_is_used_as_written(s3_place: S3Place, key: str) -> None:
    uri = s3_place.put(key, b"bytes")
    with open_fetcher(s3_place.policy) as fetcher:
        assert fetcher.fetch(uri) == b"bytes"


@pytest.mark.parametrize("scheme", ["s3a", "s3n", "S3A"])
def test_the_schemes_of_hadoop(s3_place: S3Place, scheme: str) -> None:
    uri = s3_place.put("a b#c.jpg", b"bytes").replace("s3", scheme, 1)
    s3_place.outside()
    policy = replace(s3_place.policy, schemes=("s3a", "s3n"))
    with open_fetcher(policy) as fetcher:
        assert fetcher.fetch(uri) == b"bytes"
        with pytest.raises(ItemError, match="bucket 'private' is not allowed") as caught:
            fetcher.fetch(f"{scheme}://private/secret")
    assert caught.value.code is Code.REFERENCE_DENIED


@pytest.mark.parametrize(("encoding", "is_read"), [("aws-chunked", True), ("gzip", False)])
def test_a_stored_encoding(s3_place: S3Place, encoding: str, is_read: bool) -> None:
    s3_place.site.pages["/pictures/a"] = lambda visit: visit.answer(
        200, b"bytes", Content_Encoding=encoding
    )
    with open_fetcher(s3_place.policy) as fetcher:
        if is_read:
            assert fetcher.fetch("s3://pictures/a") == b"bytes"
            return
        with pytest.raises(ItemError, match="compressed") as caught:
            fetcher.fetch("s3://pictures/a")
    assert caught.value.code is Code.REFERENCE_UNREADABLE


def test_a_response_without_a_length_is_read_and_limited(s3_place: S3Place) -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    pages = s3_place.site.pages
    pages["/pictures/a"] = lambda visit: visit.raw(start + b"5\r\nbytes\r\n0\r\n\r\n")
    large = b"3e9\r\n" + b"." * 1001 + b"\r\n0\r\n\r\n"
    pages["/pictures/b"] = lambda visit: visit.raw(start + large)
    with open_fetcher(s3_place.policy) as fetcher:
        assert fetcher.fetch("s3://pictures/a") == b"bytes"
        with pytest.raises(ItemError) as caught:
            fetcher.fetch("s3://pictures/b")
    assert caught.value.code is Code.REFERENCE_TOO_LARGE


def test_retry_after_is_respected(s3_place: S3Place) -> None:
    visits: list[float] = []

    def page(visit: Visit) -> None:
        visits.append(time.monotonic())
        if len(visits) > 1:
            return visit.answer(200, b"bytes")
        error = b"<Error><Code>SlowDown</Code></Error>"
        return visit.answer(503, error, Retry_After="1")

    s3_place.site.pages["/pictures/a"] = page
    with open_fetcher(s3_place.policy) as fetcher:
        assert fetcher.fetch("s3://pictures/a") == b"bytes"
    assert visits[1] - visits[0] >= 1


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (403, {}, Code.REFERENCE_UNREADABLE),
        (404, {}, Code.REFERENCE_NOT_FOUND),
        (500, {}, Code.REFERENCE_UNREADABLE),
        (200, {"Last_Modified": "never"}, Code.REFERENCE_UNREADABLE),
        (200, {"x_amz_missing_meta": "many"}, Code.REFERENCE_UNREADABLE),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_response_that_botocore_cannot_read_is_one_failure(
    s3_place: S3Place, status: int, headers: dict[str, str], expected: Code
) -> None:
    """A proxy's page, or broken headers; botocore leaves its connection open after them."""
    s3_place.site.pages["/pictures/a"] = lambda visit: visit.answer(
        status, b"<html><body>Sign in<br></body>", **headers
    )
    policy = replace(s3_place.policy, attempts=1)
    with open_fetcher(policy) as fetcher, pytest.raises(ItemError, match="S3 answered") as caught:
        fetcher.fetch("s3://pictures/a")
    assert caught.value.code is expected
    gc.collect()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://pictures",
        "s3://pictures/",
        "s3:///key",
        "s3://",
        "s3:pictures/key",
        "s3://pictures/../private/secret",
        "s3://pictures/./key",
        "s3://Pictures/key",
        "s3://pictures.private/key",
    ],
)
def test_malformed_references_are_denied(s3_place: S3Place, uri: str) -> None:
    s3_place.outside()
    with open_fetcher(s3_place.policy) as fetcher, pytest.raises(ItemError) as caught:
        fetcher.fetch(uri)
    assert caught.value.code is Code.REFERENCE_DENIED
    assert s3_place.connections() == 0


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", Code.REFERENCE_UNREADABLE),
        (404, "NoSuchKey", Code.REFERENCE_NOT_FOUND),
        (404, "NoSuchBucket", Code.REFERENCE_NOT_FOUND),
        (400, "KeyTooLongError", Code.REFERENCE_UNREADABLE),
        (403, "InvalidObjectState", Code.REFERENCE_UNREADABLE),
    ],
)
def test_final_responses(s3_place: S3Place, status: int, code: str, expected: Code) -> None:
    uri = answer_with(s3_place, status, code)
    with open_fetcher(s3_place.policy) as fetcher, pytest.raises(ItemError) as caught:
        fetcher.fetch(uri)
    assert caught.value.code is expected
    assert len(s3_place.site.requests) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (400, "RequestTimeout")]
)
def test_transient_responses_are_retried(s3_place: S3Place, status: int, code: str) -> None:
    uri = answer_with(s3_place, status, code)
    with open_fetcher(s3_place.policy) as fetcher, pytest.raises(TransientError) as caught:
        fetcher.fetch(uri)
    assert caught.value.code is Code.REFERENCE_UNREADABLE
    assert len(s3_place.site.requests) == 3


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch")],
)
def test_refused_credentials_are_systemic(s3_place: S3Place, status: int, code: str) -> None:
    uri = answer_with(s3_place, status, code)
    with open_fetcher(s3_place.policy) as fetcher, pytest.raises(SystemicError, match=code):
        fetcher.fetch(uri)
    assert len(s3_place.site.requests) == 1


@pytest.fixture
def guarded(moto_url: str, s3_place: S3Place, monkeypatch: pytest.MonkeyPatch) -> FetchPolicy:
    """moto checks credentials from here on; ours belong to a user without permissions."""
    s3_place.put("key", b"bytes")
    iam = boto3.client("iam", endpoint_url=moto_url, region_name="us-east-1")
    name = iam.create_user(UserName=uuid.uuid4().hex)["User"]["UserName"]
    key = iam.create_access_key(UserName=name)["AccessKey"]
    iam.close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    return replace(s3_place.policy, s3_endpoint=moto_url)


def test_a_bucket_without_permission(guarded: FetchPolicy) -> None:
    with open_fetcher(guarded) as fetcher, pytest.raises(ItemError, match="403 AccessDenied") as e:
        fetcher.fetch("s3://pictures/key")
    assert e.value.code is Code.REFERENCE_UNREADABLE


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_systemic(
    guarded: FetchPolicy, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv(wrong, "AKIAWRONG")
    with open_fetcher(guarded) as fetcher, pytest.raises(SystemicError, match="credentials"):
        fetcher.fetch("s3://pictures/key")


def test_missing_credentials_are_systemic(
    s3_place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with open_fetcher(s3_place.policy) as fetcher, pytest.raises(SystemicError, match="redentials"):
        fetcher.fetch("s3://pictures/key")
    assert s3_place.connections() == 0


@pytest.mark.parametrize("raw", [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", b""])
def test_a_broken_response_is_retried(s3_place: S3Place, raw: bytes) -> None:
    s3_place.site.pages["/pictures/broken"] = lambda visit: visit.raw(raw)
    with open_fetcher(s3_place.policy) as fetcher, pytest.raises(TransientError) as caught:
        fetcher.fetch("s3://pictures/broken")
    assert caught.value.code is Code.REFERENCE_UNREADABLE
    assert len(s3_place.site.requests) == 3


def test_a_port_without_a_server_is_unreadable(s3_place: S3Place) -> None:
    policy = replace(s3_place.policy, s3_endpoint="http://127.0.0.1:1")
    with open_fetcher(policy) as fetcher, pytest.raises(TransientError) as caught:
        fetcher.fetch("s3://pictures/key")
    assert caught.value.code is Code.REFERENCE_UNREADABLE


def test_a_dripping_response_ends_in_time(s3_place: S3Place) -> None:
    def drip(visit: Visit) -> None:
        visit.drip(iter([b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", *[b"."] * 20]), 0.1)

    s3_place.site.pages["/pictures/drip"] = drip
    policy = replace(s3_place.policy, timeout_s=0.5)
    with open_fetcher(policy) as fetcher, pytest.raises(TransientError) as caught:
        fetcher.fetch("s3://pictures/drip")
    assert caught.value.code is Code.REFERENCE_TIMEOUT
