"""What a session is launched with."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, NoReturn, get_args

import pytest

from embedstream.cli import session as cli_session
from embedstream.cli.actions.stream import run_stream
from embedstream.config.options import DELTA_EXTENSION
from embedstream.config.sections import PipelineConfig, SparkConfig, StreamConfig
from embedstream.spark.launch import add_jars, build_settings, choose_jar_sets
from embedstream.stream.job import Until
from embedstream_core.errors import SetupError

OPTION = "spark.driver.defaultJavaOptions"
ONE_COMPILER = "-XX:TieredStopAtLevel=1"


def settings(
    master: str, options: dict[str, str] | None = None, *, lasting: bool = False
) -> dict[str, str]:
    config = SparkConfig(master=master, jars="provided", options=options or {})
    return build_settings(config, PipelineConfig(), lasting=lasting)


@pytest.mark.parametrize(
    ("cores", "master", "text"),
    [
        (2, "local[*,4]", ONE_COMPILER),
        (4, "local[2,4]", ONE_COMPILER),
        (8, "local[*,4]", None),
        (2, "spark://host:7077", None),
        (None, "local[*,4]", ONE_COMPILER),
    ],
)
def test_few_cores_have_one_compiler(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, master: str, text: str | None
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)

    assert settings(master).get(OPTION) == text


def test_a_session_that_lasts_has_both_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    assert OPTION not in settings("local[*,4]", lasting=True)


def test_a_stream_lasts_unless_it_ends_once_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []

    def refuse(*_: object, lasting: bool, **__: object) -> NoReturn:
        opened.append(lasting)
        raise SetupError("no Java")

    monkeypatch.setattr(cli_session, "open_session", refuse)
    config = StreamConfig.model_validate(
        {
            "kafka": {"bootstrap_servers": "127.0.0.1:9", "subscribe": "images"},
            "encoder": {"name": "small_models:network_and_preprocessing"},
            "table": {"path": "nowhere"},
            "checkpoint": "nowhere-either",
        }
    )

    for until in get_args(Until):
        with pytest.raises(SetupError, match="no Java"):
            run_stream(config, until=until)

    assert dict(zip(get_args(Until), opened, strict=True)) == {"stopped": True, "drained": False}


def test_a_configured_java_option_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    assert settings("local[*,4]", {OPTION: "-Xss8m"})[OPTION] == "-Xss8m"


@pytest.mark.parametrize(
    ("configured", "location", "sets"),
    [
        (None, "/data/table", ["spark"]),
        (None, "s3a://bucket/table", ["spark", "s3"]),
        (("spark",), "s3a://bucket/table", ["spark"]),
        (("spark", "s3"), "/data/table", ["spark", "s3"]),
        (None, "s3://bucket/table", ["spark", "s3"]),
        (None, "/data/s3a:table", ["spark"]),
    ],
)
def test_locations_in_s3_bring_its_file_system(
    configured: tuple[Literal["spark", "s3"], ...] | None, location: str, sets: list[str]
) -> None:
    config = SparkConfig(jar_sets=configured)

    assert list(choose_jar_sets(config, ["/data/checkpoint", location])) == sets


def test_given_jars_extensions_and_patterns_are_added_to_our_own() -> None:
    """No jar, extension or pattern gives way to another."""
    own = build_settings(SparkConfig(), PipelineConfig())
    given = {
        "spark.jars": "/my/udf.jar, /own/delta.jar",
        "spark.sql.extensions": f"my.Extension,{DELTA_EXTENSION}",
        "spark.redaction.regex": "licence",
        "spark.sql.redaction.options.regex": "licence|x",
    }

    started = build_settings(SparkConfig(options=given), PipelineConfig())
    merged = add_jars(started, [Path("/own/delta.jar")])

    assert merged["spark.jars"] == "/own/delta.jar,/my/udf.jar"
    assert merged["spark.sql.extensions"] == f"{DELTA_EXTENSION},my.Extension"
    for name in ("spark.redaction.regex", "spark.sql.redaction.options.regex"):
        assert merged[name] == f"{own[name]}|({given[name]})"
        assert re.search(merged[name], "the.licence")
        assert not re.search(merged[name], "spark.app.name")


def test_any_other_setting_is_unchanged() -> None:
    given = {"spark.sql.shuffle.partitions": "7", "spark.driver.host": "me", "spark.x": "y"}
    assert settings("local[2]", given).items() >= given.items()


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("spark.SQL.extensions", "spark.sql.extensions"),
        ("spark.Jars", "spark.jars"),
        ("spark.redaction.Regex", "spark.redaction.regex"),
        ("spark.ui.showConsoleprogress", "spark.ui.showConsoleProgress"),
    ],
)
def test_a_setting_in_another_case_is_refused(name: str, right: str) -> None:
    with pytest.raises(SetupError, match=f"'{name}' .*; write {right}"):
        settings("local[2,4]", {name: "x"})
