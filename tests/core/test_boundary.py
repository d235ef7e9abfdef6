"""Any exception of an item is the item's own failure; errors of the system pass."""

from __future__ import annotations

import logging
import struct

import pytest

from embedstream_core.boundary import attempt
from embedstream_core.errors import (
    Code,
    ItemError,
    MissingExtra,
    SetupError,
    Stage,
    SystemicError,
    TransientError,
)
from embedstream_core.records import Failure


def failing(error: BaseException) -> object:
    def action() -> None:
        raise error

    return attempt(action, Stage.DECODE, content_sha256="ab")


def test_a_result_passes() -> None:
    assert attempt(lambda: 7, Stage.DECODE) == 7


@pytest.mark.parametrize("kind", [ItemError, TransientError])
def test_an_items_error_keeps_its_code_and_stage(kind: type[ItemError]) -> None:
    error = kind(Code.REFERENCE_TIMEOUT, Stage.FETCH, "late")

    assert failing(error) == Failure(Code.REFERENCE_TIMEOUT, Stage.FETCH, "late", "ab")


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires a buffer of 4 bytes"),
        KeyError("4:4:1"),
        ValueError("'[2024]' does not appear to be an IPv4 or IPv6 address"),
        RecursionError("too deep"),
        AssertionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        OSError(36, "File name too long"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unexpected_error_is_the_items_failure_and_is_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failure = failing(error)

    expected = f"{type(error).__name__}: {error}"
    assert failure == Failure(Code.INTERNAL_ERROR, Stage.DECODE, expected, "ab")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_the_message_is_short_and_valid_utf_8() -> None:
    failure = failing(OSError("\udcff" + "x" * 10_000))

    assert isinstance(failure, Failure)
    assert failure.message.startswith("OSError: ?x")
    assert len(failure.message.encode()) == 1000


@pytest.mark.parametrize(
    "error",
    [
        SystemicError("the GPU failed"),
        SetupError("no such folder"),
        MissingExtra(feature="an s3:// reference", extra="s3"),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_no_item_caused_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        failing(error)
