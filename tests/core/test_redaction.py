"""Texts that may hold a secret, and the parts of them that are kept."""

from __future__ import annotations

import pytest

from embedstream_core.redaction import redact_attributes, redact_prose, redact_uri


@pytest.mark.parametrize(
    "uri",
    [
        "https://images.test/a.jpg",
        "https://images.test:8080/a%20b.jpg?id=17&size=large#top",
        "https://images.test/@user/a.jpg?mail=a@b.test",
        "https://images.test/12345@N01/a.jpg",
        "file:///folder/a@b.jpg",
        "s3://bucket/x@y?z",
        "abfss://container@account.dfs.core.windows.net/a@b.jpg",
        "az://container@account.blob.core.windows.net/a.jpg",
        "C:/pictures/a.jpg",
        "a.jpg",
        "",
    ],
)
def test_a_uri_without_a_secret_stays(uri: str) -> None:
    assert redact_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("https://canary:canary@images.test/a.jpg", "https://[redacted]@images.test/a.jpg"),
        ("https://canary@images.test/a@b.jpg", "https://[redacted]@images.test/a@b.jpg"),
        ("https://u:canary@images.test\\@other.test/", "https://[redacted]@other.test/"),
        ("HTTPS:canary@images.test/a.jpg", "HTTPS:[redacted]@images.test/a.jpg"),
        ("https:/u:canary@images.test/", "https:/[redacted]@images.test/"),
        ("https:///u:canary@images.test/", "https:///[redacted]@images.test/"),
        ("//canary@images.test/", "//[redacted]@images.test/"),
        ("canary:canary@images.test/", "[redacted]@images.test/"),
        ("https://a/?X-Amz-Signature=canary&id=1", "https://a/?X-Amz-Signature=[redacted]&id=1"),
        ("https://a/?id=1&X-Amz-Credential=canary/x", "https://a/?id=1&X-Amz-Credential=[redacted]"),
        ("https://a/?X-Amz-Security-Token=canary", "https://a/?X-Amz-Security-Token=[redacted]"),
        ("https://a/?X%2DGoog%2DSignature=canary", "https://a/?X%2DGoog%2DSignature=[redacted]"),
        ("https://a/?sv=1&sig=canary%3D", "https://a/?sv=1&sig=[redacted]"),
        ("https://a/?AWSAccessKeyId=canary&Expires=1", "https://a/?AWSAccessKeyId=[redacted]&Expires=1"),
        ("abfss://u:canary@a.dfs.core.windows.net/k", "abfss://[redacted]@a.dfs.core.windows.net/k"),
        ("abfss://canary@c@a.dfs.test/k", "abfss://[redacted]@a.dfs.test/k"),
        ("https://a/?key=canary", "https://a/?key=[redacted]"),
        ("https://a/?API_KEY=canary", "https://a/?API_KEY=[redacted]"),
        ("https://a/?a=1;token=canary", "https://a/?a=1;token=[redacted]"),
        ("https://a/#access_token=canary", "https://a/#access_token=[redacted]"),
    ],
)  # fmt: skip
def test_secrets_are_removed_and_the_rest_stays(uri: str, kept: str) -> None:
    assert redact_uri(uri) == kept
    assert redact_uri(kept) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("401 for Bearer canary.canary.canary", "401 for Bearer [redacted]"),
        ("(b'auth', b'Bearer canary/canary_canary')", "(b'auth', b'Bearer [redacted]')"),
        ("a -----BEGIN RSA PRIVATE KEY-----\ncanary\n-----END RSA PRIVATE KEY----- b",
         "a [redacted] b"),
        ("-----BEGIN PRIVATE KEY-----\ncanary", "[redacted]"),
        ("the bearer of news", "the bearer of news"),
    ],
)  # fmt: skip
def test_secrets_without_a_name_are_removed_from_prose(text: str, kept: str) -> None:
    assert redact_prose(text) == kept
    assert redact_prose(kept) == kept


def test_attributes_are_secret_by_name_or_as_uris() -> None:
    attributes = {
        "Authorization": "Bearer canary",
        "cookie": "canary",
        "x-api-key": "canary",
        "db_password": "canary",
        "source": "https://u:canary@images.test/?sig=canary",
        "shop": "42",
        "author": "Ansel",
        "key": "folder/a.jpg",
        "mail": "somebody@images.test",
        "note": "key=value; see https://images.test/?a=1",
    }

    kept = redact_attributes(attributes)

    assert "canary" not in str(kept)
    assert kept.keys() == attributes.keys()
    assert kept["source"] == "https://[redacted]@images.test/?sig=[redacted]"
    for name in ("shop", "author", "key", "mail", "note"):
        assert kept[name] == attributes[name]
