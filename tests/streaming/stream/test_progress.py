"""Totals add up, and the listener reports what a committed micro-batch observed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from pyspark.sql.streaming.listener import (
    QueryIdleEvent,
    QueryProgressEvent,
    QueryStartedEvent,
    QueryTerminatedEvent,
)

from embedstream.cli.console import print_micro_batch, print_totals
from embedstream.cli.log import show_log
from embedstream.config.sections import StreamConfig
from embedstream.config.sections.monitoring import LogConfig
from embedstream.kafka.topics import TopicState
from embedstream.stream import watching
from embedstream.stream.progress import ProgressListener
from embedstream.stream.reports import MicroBatchReport, Totals
from embedstream.worker.counts import RowKind
from embedstream.worker.tally import FailedMessage, Tally
from embedstream_core.errors import Code

QUERY = {
    "id": "7b6c9f4e-1d4a-4b43-9b7d-0a5b4f0d9a01",
    "runId": "0f1f5f5e-6a35-4d5c-8c64-0d7a1ea0c002",
}


def batch_report(
    batch_id: int = 0, *, embeddings: int = 0, duration_s: float = 1.0, **failures: int
) -> MicroBatchReport:
    return MicroBatchReport(
        batch_id=batch_id,
        messages=embeddings + sum(failures.values()),
        tombstones=0,
        embeddings=embeddings,
        failures=Counter(failures),
        duration_s=duration_s,
        lag=None,
    )


def progress(
    batch_id: int = 0,
    *,
    read: int = 0,
    tombstones: int = 0,
    embeddings: int = 0,
    failures: dict[Code, int] | None = None,
    metrics: dict[str, str] | None = None,
    milliseconds: int = 1500,
) -> dict[str, Any]:
    """Return what Spark reports of one trigger of a Kafka query, in its JSON."""
    rates = {"inputRowsPerSecond": 10.0, "processedRowsPerSecond": 20.0}
    source = {
        "description": "KafkaV2[Subscribe[images]]",
        "startOffset": {"images": {"0": 0}},
        "endOffset": {"images": {"0": read}},
        "latestOffset": {"images": {"0": read}},
        "numInputRows": read,
        **rates,
        "metrics": {} if metrics is None else metrics,
    }
    return {
        **QUERY,
        "name": None,
        "timestamp": "2026-07-01T12:00:00.000Z",
        "batchId": batch_id,
        "batchDuration": milliseconds,
        "durationMs": {"addBatch": 1, "triggerExecution": milliseconds},
        "eventTime": {},
        "stateOperators": [],
        "sources": [source],
        "sink": {"description": "DeltaSink[/table]", "numOutputRows": -1},
        "numInputRows": read,
        **rates,
        "observedMetrics": {
            "messages": {"read": read, "tombstones": tombstones},
        },
        # Not Spark's: what the workers count, by the same names.
        "outcomes": {None: embeddings, **(failures or {})},
    }


def event(progress: dict[str, Any]) -> QueryProgressEvent:
    """The event as the JVM passes it to a listener: its offsets are JSON."""
    offsets = ("startOffset", "endOffset", "latestOffset")
    sources = [
        {**source, **{name: json.dumps(source[name]) for name in offsets}}
        for source in progress["sources"]
    ]
    return QueryProgressEvent.fromJson({"progress": {**progress, "sources": sources}})


NEWEST = FailedMessage(1.5, "images", 0, 7, "no image")


def tally_of(trigger: dict[str, Any]) -> Tally:
    outcomes = trigger["outcomes"].items()
    rows = Counter({RowKind("images", "model", code): n for code, n in outcomes if n})
    appended = Counter({1_782_907_190.0: rows.total()})
    return Tally(rows, appended, {"fetch": 0.5}, 3, {"image_corrupt": NEWEST})


def tallied(*triggers: dict[str, Any]) -> Callable[[str, int], Tally]:
    """What the workers have counted, by run and micro-batch; taken once."""
    tallies = {(one["runId"], one["batchId"]): tally_of(one) for one in triggers}
    return lambda run, batch: tallies.pop((run, batch))


def listen(*triggers: dict[str, Any]) -> tuple[ProgressListener, list[MicroBatchReport]]:
    reports: list[MicroBatchReport] = []
    listener = ProgressListener([reports.append], tallied(*triggers))
    for one in triggers:
        listener.onQueryProgress(event(one))
    return listener, reports


def test_totals_begin_at_nothing() -> None:
    totals = Totals()
    assert (totals.batches, totals.rows, totals.rows_per_s) == (0, 0, 0.0)


def test_totals_are_sums() -> None:
    totals = Totals()
    totals.add(batch_report(0, embeddings=3, duration_s=0.5, image_corrupt=1))
    totals.add(batch_report(1, embeddings=4, duration_s=1.5, image_corrupt=2, image_empty=2))
    assert totals.batches == 2
    assert totals.embeddings == 7
    assert totals.failures == {"image_corrupt": 3, "image_empty": 2}
    assert totals.rows == 12
    assert totals.busy_s == 2.0
    assert totals.rows_per_s == 6.0


def test_totals_leave_the_reports_as_they_were() -> None:
    totals, report = Totals(), batch_report(embeddings=1, image_empty=1)
    totals.add(report)
    totals.add(batch_report(image_empty=5))
    assert report.failures == {"image_empty": 1}


def test_two_totals_share_nothing() -> None:
    first, second = Totals(), Totals()
    first.add(batch_report(image_empty=1))
    assert second.failures == Counter()


def test_rows_of_a_micro_batch_are_embeddings_and_failures() -> None:
    assert batch_report(embeddings=5, image_empty=1, image_corrupt=2).rows == 8


def test_a_micro_batch_is_reported_as_it_was_observed() -> None:
    failed = {Code.IMAGE_CORRUPT: 2, Code.REFERENCE_DENIED: 1}
    trigger = progress(
        7,
        read=13,
        tombstones=4,
        embeddings=6,
        failures=failed,
        metrics={"avgOffsetsBehindLatest": "20.5", "maxOffsetsBehindLatest": "31"},
        milliseconds=2500,
    )

    listener, reports = listen(trigger)

    assert reports == [
        MicroBatchReport(
            batch_id=7,
            messages=13,
            tombstones=4,
            embeddings=6,
            failures=Counter({"image_corrupt": 2, "reference_denied": 1}),
            duration_s=2.5,
            lag=31,
            committed_at=datetime(2026, 7, 1, 12, 0, 2, 500_000, UTC).timestamp(),
            rows_by_kind={
                RowKind("images", "model", None): 6,
                RowKind("images", "model", "image_corrupt"): 2,
                RowKind("images", "model", "reference_denied"): 1,
            },
            stage_seconds={"fetch": 0.5},
            appended={1_782_907_190.0: 9},
            cache_hits=3,
            read={("images", 0): 13},
            newest_failures={"image_corrupt": NEWEST},
        )
    ]
    assert (listener.totals.batches, listener.totals.rows) == (1, 9)


def test_what_spark_does_not_see_is_reported_as_the_workers_count_it() -> None:
    """As on a table with a generated column."""
    trigger = progress(7, embeddings=6, failures={Code.IMAGE_EMPTY: 1})
    _, (report,) = listen({**trigger, "observedMetrics": {}})
    assert (report.messages, report.rows, report.embeddings) == (7, 7, 6)
    assert report.failures == {"image_empty": 1}


def test_failures_that_did_not_happen_are_not_listed() -> None:
    _, (report,) = listen(progress(read=2, embeddings=2))
    assert report.failures == Counter()
    assert list(report.failures) == []


def test_micro_batches_add_up() -> None:
    listener, reports = listen(
        progress(0, read=5, embeddings=5, milliseconds=1000),
        progress(1, read=4, tombstones=1, embeddings=1, failures={Code.IMAGE_EMPTY: 2}),
    )
    assert [report.batch_id for report in reports] == [0, 1]
    assert listener.totals == Totals(
        batches=2, tombstones=1, embeddings=6, failures=Counter(image_empty=2), busy_s=2.5
    )


def test_a_micro_batch_of_tombstones_only_is_reported() -> None:
    listener, reports = listen(progress(read=3, tombstones=3))
    assert [(report.tombstones, report.rows) for report in reports] == [(3, 0)]
    assert listener.totals.tombstones == 3


def test_deletions_are_rows_and_no_failures() -> None:
    failed = {Code.IMAGE_EMPTY: 2, Code.DELETED: 3}
    listener, (report,) = listen(progress(read=7, tombstones=1, embeddings=1, failures=failed))
    assert (report.rows, report.messages, report.deleted) == (6, 7, 3)
    assert report.failures == {"image_empty": 2}
    assert listener.totals == Totals(
        batches=1,
        tombstones=1,
        embeddings=1,
        failures=Counter(image_empty=2),
        deleted=3,
        busy_s=1.5,
    )
    assert listener.totals.rows == 6


def test_deletions_are_printed_on_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {Code.IMAGE_EMPTY: 2, Code.DELETED: 3}
    listener, (report,) = listen(progress(read=6, embeddings=1, failures=failed))

    with show_log(LogConfig()):
        print_micro_batch(report)
        print_totals(listener.totals, table="t", model_loads=1)
        print_totals(Totals(), table="t", model_loads=1)

    batch, totals, *_, nothing, _, _ = capsys.readouterr().out.splitlines()
    assert batch.split("  ")[-1] == "3 deleted"
    assert "  2 failures  " in batch
    assert totals.endswith("1 embeddings, 2 failures (2 image_empty), 3 deleted")
    assert nothing.endswith("0 failures")


def test_a_trigger_without_messages_is_not_reported() -> None:
    listener, reports = listen(progress(3, read=0))
    assert reports == []
    assert listener.totals == Totals()


@pytest.mark.parametrize(
    ("metrics", "lag"),
    [
        ({"maxOffsetsBehindLatest": "0"}, 0),
        ({"minOffsetsBehindLatest": "1", "maxOffsetsBehindLatest": "120"}, 120),
        ({}, None),
    ],
)
def test_the_lag_is_the_kafka_sources_own(metrics: dict[str, str], lag: int | None) -> None:
    _, (report,) = listen(progress(read=1, embeddings=1, metrics=metrics))
    assert report.lag == lag


def test_a_trigger_without_sources_has_no_lag() -> None:
    _, (report,) = listen({**progress(read=1, embeddings=1), "sources": []})
    assert report.lag is None


def test_only_the_end_of_the_query_ends_the_listener() -> None:
    listener, _ = listen(progress(read=1, embeddings=1))
    at = {**QUERY, "timestamp": "2026-07-01T12:00:00.000Z"}
    listener.onQueryStarted(QueryStartedEvent.fromJson({**at, "name": None, "jobTags": []}))
    listener.onQueryIdle(QueryIdleEvent.fromJson(at))
    assert not listener.ended

    end = {**QUERY, "exception": None, "errorClassOnException": None}
    listener.onQueryTerminated(QueryTerminatedEvent.fromJson(end))
    assert listener.ended
    assert listener.totals.batches == 1


def test_what_an_observer_raises_is_logged_once_for_each_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors: list[Exception] = [ValueError("one"), ValueError("two"), KeyError("three")]
    seen: list[int] = []

    def fail(report: MicroBatchReport) -> None:
        raise errors[report.batch_id]

    triggers = [progress(number, read=1, embeddings=1) for number in range(3)]
    observers = [fail, lambda report: seen.append(report.batch_id)]
    listener = ProgressListener(observers, tallied(*triggers))
    for one in triggers:
        listener.onQueryProgress(event(one))

    assert seen == [0, 1, 2]
    assert listener.totals.batches == 3
    assert [str(one.exc_info[1]) for one in caplog.records if one.exc_info] == ["one", "'three'"]


def test_the_offsets_of_a_micro_batch_without_messages_are_passed_on() -> None:
    """As of one that a restart repeats, and that Delta skips."""
    read: list[object] = []
    trigger = progress(4, read=0)
    trigger["sources"][0]["endOffset"] = {"images": {"0": 8, "1": 9}}
    listener = ProgressListener([], tallied(trigger), on_read=read.append)
    listener.onQueryProgress(event(trigger))
    assert read == [{("images", 0): 8, ("images", 1): 9}]


def test_who_shows_the_offsets_gets_those_of_a_micro_batch_without_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "check_topics", lambda spark, kafka: {})
    spark = Mock()
    spark.sparkContext.accumulator.return_value = SimpleNamespace(value={})
    config = StreamConfig.model_validate(
        {
            "kafka": {"bootstrap_servers": "localhost:1", "subscribe": "images"},
            "table": {"path": "table"},
            "checkpoint": "checkpoint",
        }
    )
    read: list[object] = []
    with watching.watch_stream(
        spark, config, replay="", observers=[], on_read=read.append
    ) as watch:
        trigger = progress(4, read=0)
        trigger["sources"][0]["endOffset"] = {"images": {"0": 8}}
        watch.listener.onQueryProgress(event(trigger))
    assert read == [{("images", 0): 8}]


def margin(
    earliest: dict[int, int] | None, read: dict[str, int], newest: dict[str, int]
) -> int | None:
    """Return the reported margin of a micro-batch; None as `earliest`: Kafka has not answered."""
    reports: list[MicroBatchReport] = []
    topics = None if earliest is None else {"images": TopicState("id", earliest, {})}
    lag = max(newest[number] - read[number] for number in read)
    trigger = progress(read=1, embeddings=1, metrics={"maxOffsetsBehindLatest": str(lag)})
    trigger["sources"][0].update(endOffset={"images": read}, latestOffset={"images": newest})
    listener = ProgressListener([reports.append], tallied(trigger), get_topics=lambda: topics)
    listener.onQueryProgress(event(trigger))
    return reports[0].margin


def test_the_margin_is_of_the_partition_that_retention_is_nearest_to() -> None:
    read = {"0": 150, "1": 40, "2": 90}
    assert margin({0: 100, 1: 10, 2: 90}, read, {"0": 200, "1": 50, "2": 90}) == 30


def test_there_is_no_margin_without_a_lag() -> None:
    assert margin({0: 0}, {"0": 10}, {"0": 10}) is None


def test_without_kafkas_offsets_there_is_no_margin() -> None:
    assert margin(None, {"0": 5}, {"0": 10}) is None
    assert margin({1: 0}, {"0": 5}, {"0": 10}) is None
