"""Records of workers: bounded, and logged by the driver once."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
from pyspark import Accumulator

from embedstream.worker.log_records import (
    MAX_CHARACTERS,
    MAX_RECORDS,
    WorkerLog,
    _DriversLog,
    _Forward,
)

LOG = logging.getLogger("embedstream_core.boundary")


class Task:
    """A worker's side: its updates, as Spark sends them to the driver's accumulator."""

    def __init__(self) -> None:
        accumulator: Any = Accumulator(-77, (), _Forward())
        self.log = WorkerLog(accumulator)
        self.accumulator = accumulator

    def end(self) -> Any:
        return pickle.loads(pickle.dumps(self.accumulator.value))


@pytest.fixture
def driver() -> Accumulator[Any]:
    return Accumulator(-78, _DriversLog(), _Forward())


def test_records_of_a_task_are_logged_again_with_where_they_come_from(
    driver: Accumulator[Any], caplog: pytest.LogCaptureFixture
) -> None:
    task = Task()
    with task.log.collect():
        LOG.info("not worth it")
        try:
            raise ValueError("http://me:c4n4ry@x.test/")
        except ValueError:
            LOG.exception("a bug in %s", "one item", extra={"fields": {"position": "t-0-7"}})
    LOG.warning("after the task")
    caplog.clear()

    driver += task.end()

    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOG.name, logging.ERROR)
    assert record.getMessage() == "a bug in one item"
    assert str(record.exc_text).endswith("ValueError: http://[redacted]@x.test/")
    assert vars(record)["fields"]["position"] == "t-0-7"
    assert vars(record)["fields"]["host"]
    # Nothing is kept.
    assert driver.value == ()
    driver += task.end()
    assert len(caplog.records) == 2


def test_a_task_sends_few_and_short_records(
    driver: Accumulator[Any], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task()
    with task.log.collect():
        for number in range(1000):
            LOG.warning("%d %s", number, "x" * 100_000, extra={"fields": {"uri": "y" * 100_000}})
    sent = task.end()
    assert len(sent) == MAX_RECORDS + 1
    assert len(pickle.dumps(sent)) < (MAX_RECORDS + 1) * 3 * MAX_CHARACTERS
    caplog.clear()

    driver += sent

    messages = [record.getMessage() for record in caplog.records]
    assert [one.split()[0] for one in messages[:-1]] == [*map(str, range(MAX_RECORDS))]
    assert messages[-1] == f"{1000 - MAX_RECORDS} more records are in this executor's log"


def test_a_tasks_error_does_not_leave_the_collector_behind() -> None:
    task = Task()
    with pytest.raises(RuntimeError), task.log.collect():
        raise RuntimeError("the task has failed")
    assert not LOG.parent or not [one for one in LOG.parent.handlers if one.level]


def test_an_update_that_is_no_record_harms_nobody(driver: Accumulator[Any]) -> None:
    driver += ({"level": "loud"}, {})
    assert driver.value == ()
