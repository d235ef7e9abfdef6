"""Commits that Delta refuses because of another writer's, and how they are repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from embedstream.spark.errors import name_causes

__all__ = ["commit_with_retries", "find_conflict"]

Result = TypeVar("Result")

# Delta's exceptions for a commit of another writer.
_ALTERED = {"MetadataChangedException", "ProtocolChangedException"}
_CONCURRENT = {
    "ConcurrentAppendException",
    "ConcurrentDeleteDeleteException",
    "ConcurrentDeleteReadException",
    "ConcurrentTransactionException",
    "ConcurrentWriteException",
}

_COMMIT_ATTEMPTS = 8


def find_conflict(error: Exception) -> Literal["altered", "concurrent"] | None:
    """Return why Delta refused a commit that can be repeated; None if the error is another one.

    `altered`: the table's columns or properties changed since the writer read them. `concurrent`:
    another commit changed files that the writer read.
    """
    causes = name_causes(error)
    if causes & _ALTERED:
        return "altered"
    return "concurrent" if causes & _CONCURRENT else None


def commit_with_retries(commit: Callable[[], Result]) -> Result:
    """Run a statement that changes rows, again if another commit changed the files that it read.

    The live stream compacts the table's files now and then.
    """
    for attempt in range(1, _COMMIT_ATTEMPTS):
        try:
            return commit()
        except (PySparkException, Py4JJavaError) as error:
            if find_conflict(error) != "concurrent":
                raise
            time.sleep(0.2 * 2**attempt)
    return commit()
