"""The section of the schema registry, and its secrets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from config_files import SECRET, load, problems, shown

URL = "https://registry.example.com:8081"


def section(**given: Any) -> dict[str, Any]:
    return {"message": {"registry": {"url": URL, **given}}}


def test_without_a_registry_nothing_is_decoded(tmp_path: Path) -> None:
    assert load(tmp_path).message.build_reader().decoder is None


def test_secrets_reach_the_workers_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)
    (tmp_path / "key.pem").write_text(SECRET, encoding="utf-8")
    key = f"file:{tmp_path}/key.pem"
    given = {"password": "env:TEST_SECRET", "tls_key": key, "tls_certificate": key, "tls_ca": key}

    config = load(tmp_path, section(username="me", **given))

    reader = config.message.build_reader()
    sent: Any = pickle.loads(pickle.dumps(reader)).decoder
    assert (sent.connection.username, sent.connection.password) == ("me", SECRET)
    assert sent.connection.tls_key == sent.connection.tls_ca == SECRET
    assert sent.connection.timeout_s == 10
    assert SECRET not in shown(config)
    assert SECRET not in repr(reader)


def test_keys_may_be_given_outside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SECRET", "t0ken")

    config = load(tmp_path, section(), "message.registry.token=env:TEST_SECRET")

    decoder: Any = config.message.build_reader().decoder
    assert decoder.connection.token == "t0ken"
    assert "t0ken" not in shown(config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"password": SECRET, "username": "me"},
            "password: it is a secret, so give it as",
        ),
        ({"token": SECRET}, "token: it is a secret, so give it as env:NAME or file:PATH"),
        ({"tls_key": SECRET}, "tls_key: it is a secret, so give it as env:NAME or file:PATH"),
        ({"token": "env:TEST_ABSENT"}, "token: the environment variable TEST_ABSENT is not set"),
        ({"tls_ca": "file:/no/such"}, "tls_ca: the file /no/such cannot be read"),
        ({"password": "env:TEST_SECRET"}, "password needs username"),
        ({"token": "env:TEST_SECRET", "username": "me"}, "give username and password, or token"),
        ({"url": "registry:8081"}, "url has to be the address of a schema registry"),
        ({"url": f"https://me:{SECRET}@registry"}, "url has to be the address"),
        ({"timeout_s": 0}, "timeout_s: should be greater than 0"),
        ({"user": "me"}, "user: unknown key; did you mean 'username'?"),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)

    _, line = problems(tmp_path, section(**given))

    assert message in line
    assert "message.registry" in line
    assert SECRET not in line


def test_plain_bytes_need_no_registry(tmp_path: Path) -> None:
    _, line = problems(tmp_path, {"message": {"format": "bytes", "registry": {"url": URL}}})

    assert "with format bytes no schema is read" in line
