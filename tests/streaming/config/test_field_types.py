"""Times, switches, topics and locations are read as a user means them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from config_files import MINIMAL, load, problems
from embedstream.cli.options import parse_time
from embedstream.config.sections import KafkaConfig


@pytest.mark.parametrize(
    ("given", "value"),
    [("true", "true"), ("Yes", "true"), ("off", "false"), ("'yes'", "yes"), ("0123", "0123")],
)
def test_a_boolean_option_is_written_as_spark_writes_it(
    tmp_path: Path, given: str, value: str
) -> None:
    config = load(tmp_path, {}, f"spark.options.spark.x={given}")
    assert config.spark.options == {"spark.x": value}


@pytest.mark.parametrize(("given", "value"), [("on", "on"), ("true", "on"), ("no", "off")])
def test_a_switch_is_a_boolean(tmp_path: Path, given: str, value: str) -> None:
    assert load(tmp_path, {}, f"pipeline.dedupe={given}").pipeline.dedupe == value


@pytest.mark.parametrize(
    ("given", "text"), [("true", "true"), ("7", "7"), ("1.5", "1.5"), ("interval 7 days",) * 2]
)
def test_a_table_property_is_written_as_delta_writes_it(
    tmp_path: Path, given: str, text: str
) -> None:
    config = load(tmp_path, {}, f"table.properties.delta.x={given}")
    assert config.table.properties == {"delta.x": text}


def test_locations_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = load(
        tmp_path,
        {
            "table": {"path": "table"},
            "checkpoint": "s3a://bucket/checkpoint",
            "references": {"folders": ["~/pictures"]},
        },
    )
    assert config.table.path == str(tmp_path / "table")
    assert config.checkpoint == "s3a://bucket/checkpoint"
    assert config.references.folders == ("/home/me/pictures",)


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that is not in UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("given", "utc"),
    [
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31 12:00:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00:00+01:00", "2026-01-31T11:00:00+00:00"),
    ],
)
def test_a_time_without_a_zone_is_in_utc(
    tmp_path: Path, new_york: None, given: str, utc: str
) -> None:
    wanted = datetime.fromisoformat(utc)
    start = load(tmp_path, {}, f"kafka.starting_timestamp={given}").kafka.starting_timestamp
    assert start == wanted
    assert parse_time(given) == wanted


def test_times_and_dates_of_python_are_in_utc_too(new_york: None) -> None:
    kafka = MINIMAL["kafka"]
    for given in (datetime(2026, 1, 31), date(2026, 1, 31)):
        config = KafkaConfig.model_validate({**kafka, "starting_timestamp": given})
        assert config.starting_timestamp == datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "utc"),
    [
        ("20260131", "2026-01-31T00:00:00"),
        ("2026-01-31T12", "2026-01-31T12:00:00"),
        ("2026-01-31T12:00+02", "2026-01-31T10:00:00"),
        ("1769860800", "2026-01-31T12:00:00"),
        ("1769860800250", "2026-01-31T12:00:00.250000"),
    ],
)
def test_a_time_is_read_as_a_person_reads_it(
    tmp_path: Path, new_york: None, given: str, utc: str
) -> None:
    start = load(tmp_path, {}, f"kafka.starting_timestamp={given}").kafka.starting_timestamp
    assert start == datetime.fromisoformat(f"{utc}+00:00")


@pytest.mark.parametrize("given", ["2026", "202601", "-1", "0", "1e9", "now", "true", "1969-12-31"])
def test_a_number_that_could_be_a_date_is_refused(tmp_path: Path, given: str) -> None:
    """Read as seconds since 1970, the year 2026 would be the topic's beginning."""
    (line,) = problems(tmp_path, {}, f"kafka.starting_timestamp={given}")[1:]
    assert line.startswith(f"  kafka.starting_timestamp: {given!r} is not a time") or "1970" in line


@pytest.mark.parametrize("topics", ["", ",", "cats,", "a b", "möwe", "x" * 250])
def test_an_invalid_topic_name_is_refused(tmp_path: Path, topics: str) -> None:
    (_, line) = problems(tmp_path, {"kafka": {"subscribe": topics}})
    assert "is not a topic name" in line
