"""Maintenance continues after a failure, which is logged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.errors import (
    PySparkException,
    StreamingQueryException,
    UnsupportedOperationException,
)

from embedstream.stream.maintenance import maintain_stream
from embedstream.table.address import TableAddress


class Query:
    """A query that is at these micro-batches when maintenance looks at it, and then ends."""

    def __init__(self, batches: list[int]) -> None:
        self.batches = iter(batches)
        self.lastProgress: Any = None
        self.status = {"isTriggerActive": True}

    def awaitTermination(self, timeout: int) -> bool:  # noqa: N802
        batch = next(self.batches, None)
        self.lastProgress = SimpleNamespace(batchId=batch)
        return batch is None


class Conf(dict[str, Any]):
    set = dict.__setitem__
    contains = dict.__contains__


class Spark:
    """A session in which compaction fails in some way."""

    def __init__(self, error: Exception, properties: Mapping[str, str] | None = None) -> None:
        self.conf = Conf({"spark.dynamicAllocation.enabled": "true"})
        self.sparkContext = SimpleNamespace(getConf=lambda: self.conf)
        self.compactions = 0
        self._error = error
        self._properties = properties or {}

    def newSession(self) -> Any:  # noqa: N802
        return self

    def sql(self, statement: str) -> Any:
        if statement.startswith("OPTIMIZE"):
            self.compactions += 1
            raise self._error
        rows = [{"key": key, "value": value} for key, value in self._properties.items()]
        return SimpleNamespace(collect=lambda: rows)


def maintain(spark: Any, batches: list[int], compact_every: int) -> None:
    query: Any = Query(batches)
    table = TableAddress("table")
    maintain_stream(spark, query, table, load=print, compact_every=compact_every, interval_s=0)


@pytest.mark.parametrize(
    ("batches", "compact_every", "compactions"),
    [([0, 3, 9], 10, 0), ([3, 9, 10, 19, 25], 10, 2), ([3, 100], 0, 0)],
)
def test_a_compaction_that_fails_is_logged_and_tried_at_the_next_turn(
    caplog: pytest.LogCaptureFixture, batches: list[int], compact_every: int, compactions: int
) -> None:
    spark = Spark(OSError("the store is away"))
    with caplog.at_level(logging.WARNING):
        maintain(spark, batches, compact_every)
    assert spark.compactions == compactions
    assert [record.message for record in caplog.records] == [
        "compacting the table failed, trying later: the store is away"
    ] * compactions
    assert all(record.exc_info for record in caplog.records)


def test_the_error_of_a_query_is_left_to_whoever_awaits_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failed(Query):
        def awaitTermination(self, timeout: int) -> bool:  # noqa: N802
            raise StreamingQueryException("the disk is full")

    query: Any = Failed([])
    spark: Any = Spark(OSError())
    with caplog.at_level(logging.INFO):
        maintain_stream(
            spark, query, TableAddress("table"), load=print, compact_every=0, interval_s=0
        )

    # No state is computed ahead here: there is no JVM.
    [record] = caplog.records
    assert record.message.startswith("the log's state is computed by each micro-batch itself: ")
    assert not record.exc_info


class _Denied(PySparkException):
    def getSqlState(self) -> str:  # noqa: N802
        return "42501"


@pytest.mark.parametrize("error", [UnsupportedOperationException("no"), _Denied("no")])
def test_a_catalog_that_refuses_compaction_is_asked_once(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    spark = Spark(error)
    with caplog.at_level(logging.WARNING):
        maintain(spark, [9, 10, 20, 30], 10)
    assert spark.compactions == 1
    assert caplog.messages == ["compacting 'table' is left to its catalog: no"]


def test_a_table_that_its_catalog_clusters_is_not_compacted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spark = Spark(OSError(), {"clusterByAuto": "true"})
    with caplog.at_level(logging.WARNING):
        maintain(spark, [9, 10, 20, 30], 10)
    assert spark.compactions == 0
    assert caplog.messages == [
        "compacting 'table' is left to its catalog: it chooses the table's clustering"
    ]
