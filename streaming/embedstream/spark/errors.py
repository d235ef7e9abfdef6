"""What Spark's and Java's exceptions say, in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from py4j.java_gateway import is_instance_of
from py4j.protocol import Py4JError
from pyspark import SparkContext

__all__ = [
    "describe_error",
    "find_condition",
    "find_reason",
    "find_root_cause",
    "list_causes",
    "log_errors",
    "name_causes",
]


@contextmanager
def log_errors(log: logging.Logger, level: int, message: str) -> Iterator[None]:
    """Log the reason of any exception, and continue after the block.

    A warning has the traceback, and so has every record where the log shows debugging.
    """
    try:
        yield
    except Exception as error:
        is_traced = level >= logging.WARNING or log.isEnabledFor(logging.DEBUG)
        log.log(level, "%s: %s", message, describe_error(error), exc_info=is_traced)


def describe_error(error: Exception) -> str:
    """Return the last line that names an error: the Python worker's own if there is one."""
    try:
        text = str(error)
    except Py4JError:
        # Py4J asks the JVM for the text of its errors, and the JVM may have ended.
        text = type(error).__name__
    trace = f"{text}\n{getattr(error, '_stackTrace', '')}"
    lines = [line.strip().removeprefix("Caused by: ") for line in trace.splitlines()]
    named = [line for line in lines if "Error: " in line or "Exception: " in line]
    return named[-1] if named else lines[0]


def list_causes(error: Exception) -> list[Any]:
    """Return the Java exceptions behind an error, each followed by its cause; [] if none."""
    found: list[Any] = []
    # PySpark converts some exceptions into its own and keeps the original.
    cause: Any = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    while cause is not None:
        found.append(cause)
        cause = cause.getCause()
    return found


def name_causes(error: Exception) -> set[str]:
    """Return the class names of the Java exceptions behind an error, without their packages."""
    return {cause.getClass().getSimpleName() for cause in list_causes(error)}


def find_condition(error: Exception) -> str | None:
    """Return the condition, such as `TABLE_OR_VIEW_NOT_FOUND`, that Spark or Delta gave an error.

    None if neither did.
    """
    for cause in list_causes(error):
        if is_instance_of(SparkContext._gateway, cause, "org.apache.spark.SparkThrowable"):
            return str(cause.getCondition())
    return None


def find_root_cause(error: Exception) -> str:
    """Return the message of the innermost Java exception, or of the error if there is none."""
    found = list_causes(error)
    if not found:
        return str(error)
    return str(found[-1].getMessage() or found[-1].getClass().getSimpleName())


def find_reason(error: Exception) -> str:
    """Return the first line of `find_root_cause`: the rest may be a stack of nested plans."""
    return find_root_cause(error).strip().partition("\n")[0]
