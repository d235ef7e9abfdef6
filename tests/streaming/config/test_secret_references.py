"""Options refer to secrets; nothing that is printed contains one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from config_files import JAAS, SECRET, load, problems, shown
from embedstream.config.errors import ConfigError
from embedstream.config.secrets import resolve_options, reveal


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("env:TEST_SECRET", SECRET),
        ("file:{folder}/secret", SECRET),
        (JAAS.format("${env:TEST_SECRET}"), JAAS.format(SECRET)),
        ("${env:TEST_USER}:${file:{folder}/secret}", f"me:{SECRET}"),
    ],
)
@pytest.mark.parametrize("section", ["kafka", "spark"])
def test_a_secret_is_resolved_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, given: str, resolved: str
) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)
    monkeypatch.setenv("TEST_USER", "me")
    (tmp_path / "secret").write_text(f"{SECRET}\n", encoding="utf-8")
    name = f"{section}.some.password"
    option = given.replace("{folder}", str(tmp_path))

    config = load(tmp_path, {section: {"options": {name: option}}})

    assert reveal(getattr(config, section).options) == {name: resolved}
    assert SECRET not in shown(config)


def test_an_option_without_a_reference_stays_readable(tmp_path: Path) -> None:
    options = {"kafka.a": "file", "kafka.b": "environment:x", "kafka.c": True, "kafka.d": 1.5}
    config = load(tmp_path, {"kafka": {"options": options}})
    assert config.kafka.options == {
        "kafka.a": "file",
        "kafka.b": "environment:x",
        "kafka.c": "true",
        "kafka.d": "1.5",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("env:TEST_ABSENT", "the environment variable TEST_ABSENT is not set"),
        ("a ${env:TEST_ABSENT} b", "the environment variable TEST_ABSENT is not set"),
        ("file:/no/such", "the file /no/such cannot be read: No such file or directory"),
        ("${file:/}", "the file / cannot be read: Is a directory"),
    ],
)
def test_a_reference_that_leads_nowhere_is_reported(
    tmp_path: Path, given: str, message: str
) -> None:
    assert "TEST_ABSENT" not in os.environ
    changes = {"kafka": {"options": {"kafka.ssl.key.password": given}}}
    (_, line) = problems(tmp_path, changes)
    assert line == f"  kafka.options.kafka.ssl.key.password: {message}"


def test_a_secret_file_that_is_not_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe\x00")
    changes = {"kafka": {"options": {"kafka.ssl.key.password": f"file:{tmp_path / 'secret'}"}}}
    (_, line) = problems(tmp_path, changes)
    assert f"the file {tmp_path / 'secret'} cannot be read" in line


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("kafka", {"kafka.ssl.key.password": SECRET}),
        ("kafka", {"kafka.ssl.key.PASSWORD": 12345678}),
        ("kafka", {"kafka.sasl.jaas.config": JAAS.format(SECRET)}),
        ("kafka", {"kafka.sasl.jaas.config": f"x password = {SECRET};"}),
        ("spark", {"spark.hadoop.fs.s3a.secret.key": SECRET}),
        ("spark", {"spark.hadoop.fs.s3a.session.token": SECRET}),
        ("kafka", {"kafka": {"ssl": {"key": {"password": SECRET}}}}),
    ],
)
def test_a_secret_in_plain_text_is_refused_and_not_repeated(
    tmp_path: Path, section: str, options: dict[str, Any]
) -> None:
    text = "\n".join(problems(tmp_path, {section: {"options": options}}))
    assert f"  {section}.options" in text
    assert SECRET not in text
    assert "12345678" not in text


@pytest.mark.parametrize(
    ("section", "name"), [("kafka", "options"), ("spark", "options"), ("table", "properties")]
)
@pytest.mark.parametrize(("value", "kind"), [([SECRET], "list"), ({"y": SECRET}, "dict")])
def test_an_option_with_a_list_or_map_is_refused(
    tmp_path: Path, section: str, name: str, value: object, kind: str
) -> None:
    (_, line) = problems(tmp_path, {section: {name: {f"{section}.x": value}}})
    assert line == (
        f"  {section}.{name}.{section}.x: its value must be a text, a number, true or false, not a "
        f"{kind}; write a name with dots as one key, as in `kafka.security.protocol: SSL`"
    )


def test_a_plain_secret_is_refused_with_the_way_out(tmp_path: Path) -> None:
    changes = {"kafka": {"options": {"kafka.ssl.key.password": SECRET}}}
    (_, line) = problems(tmp_path, changes)
    assert line == (
        "  kafka.options: 'kafka.ssl.key.password' holds a secret in plain text; give it as "
        "env:NAME or file:PATH, or as ${env:NAME} within a longer value"
    )


def test_options_that_are_not_from_a_file_follow_the_same_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)
    options = resolve_options({"security_protocol": "SSL", "ssl_password": "env:TEST_SECRET"})
    assert SECRET not in repr(options)
    assert reveal(options) == {"security_protocol": "SSL", "ssl_password": SECRET}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ssl_password": "env:TEST_ABSENT", "ssl_cafile": "file:/no/such"},
            "ssl_password: the environment variable TEST_ABSENT is not set\n"
            "ssl_cafile: the file /no/such cannot be read: No such file or directory",
        ),
        ({"ssl_password": SECRET}, "'ssl_password' holds a secret in plain text; give it as env:"),
    ],
)
def test_wrong_options_that_are_not_from_a_file_are_reported(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_options(options)
    assert str(error.value).startswith(message)
    assert SECRET not in str(error.value)
