"""Responses of S3, and errors of boto3 before a request."""

from __future__ import annotations

import gc
import uuid
from dataclasses import replace

import boto3
import moto.settings
import pytest

from embedstream_core.errors import Code, ItemError, SystemicError, TransientError
from embedstream_core.fetch.fetcher import open_fetcher
from embedstream_core.settings import FetchPolicy
from store_places import S3Place


def answer_with(place: S3Place, status: int, code: str) -> str:
    """A reference that S3 answers with this error."""
    page = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    place.site.pages["/pictures/error"] = lambda visit: visit.answer(status, page)
    return "s3://pictures/error"


@pytest.mark.parametrize("scheme", ["s3a", "s3n", "S3A"])
def test_the_schemes_of_hadoop(s3_place: S3Place, scheme: str) -> None:
    uri = s3_place.put("a b#c.jpg", b"bytes").replace("s3", scheme, 1)
    s3_place.outside()
    with open_fetcher(s3_place.policy) as fetcher:
        assert fetcher.fetch(uri) == b"bytes"
        with pytest.raises(
            ItemError, match="bucket 'private' is not allowed in s3; allowed: pictures"
        ) as caught:
            fetcher.fetch(f"{scheme}://private/secret")
    assert caught.value.code is Code.REFERENCE_DENIED


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
