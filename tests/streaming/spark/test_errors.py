"""What is said of Spark's errors, and what is logged of those that cost nothing."""

from __future__ import annotations

import logging

import pytest
from py4j.protocol import Py4JNetworkError

from embedstream.spark.errors import describe_error, log_errors

_log = logging.getLogger("embedstream.test")


class OfAnEndedJvm(Exception):
    def __str__(self) -> str:
        raise Py4JNetworkError("the JVM does not answer")


def test_an_error_whose_jvm_has_ended_is_named() -> None:
    assert describe_error(OfAnEndedJvm()) == "OfAnEndedJvm"


@pytest.mark.parametrize(
    ("level", "shown", "is_traced"),
    [
        (logging.INFO, logging.INFO, False),
        (logging.INFO, logging.DEBUG, True),
        (logging.WARNING, logging.INFO, True),
    ],
)
def test_a_logged_error_has_its_reason_and_its_traceback_where_it_is_of_use(
    caplog: pytest.LogCaptureFixture, level: int, shown: int, is_traced: bool
) -> None:
    with caplog.at_level(shown, logger=_log.name), log_errors(_log, level, "not started"):
        raise OSError("the disk is full")

    [record] = caplog.records
    assert (record.message, bool(record.exc_info)) == ("not started: the disk is full", is_traced)
