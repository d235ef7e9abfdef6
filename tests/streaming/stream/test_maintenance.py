"""Maintenance continues after a failure, which is logged with its traceback."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

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


class Spark:
    """A session in which compaction fails."""

    def __init__(self) -> None:
        self.conf = {"spark.dynamicAllocation.enabled": "true"}
        self.compactions = 0

    def newSession(self) -> Any:  # noqa: N802
        self.compactions += 1
        raise OSError("the store is away")


@pytest.mark.parametrize(
    ("batches", "compact_every", "compactions"),
    [([0, 3, 9], 10, 0), ([3, 9, 10, 19, 25], 10, 2), ([3, 100], 0, 0)],
)
def test_a_compaction_that_fails_is_logged_and_tried_at_the_next_turn(
    caplog: pytest.LogCaptureFixture, batches: list[int], compact_every: int, compactions: int
) -> None:
    spark: Any = Spark()
    query: Any = Query(batches)
    with caplog.at_level(logging.WARNING):
        table = TableAddress("table")
        maintain_stream(spark, query, table, load=print, compact_every=compact_every, interval_s=0)
    assert spark.compactions == compactions
    assert [record.message for record in caplog.records] == [
        "compacting the table failed, trying later"
    ] * compactions
    assert all(record.exc_info for record in caplog.records)
