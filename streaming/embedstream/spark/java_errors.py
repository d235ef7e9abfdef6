"""The Java exceptions behind what a call into Spark's JVM raised."""

from __future__ import annotations

from typing import Any

__all__ = ["causes", "root_cause"]


def causes(error: Exception) -> list[Any]:
    """The Java exceptions behind an error, each followed by its cause; none without Java's part."""
    found: list[Any] = []
    # PySpark makes errors of its own out of some, and keeps the original.
    cause: Any = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    while cause is not None:
        found.append(cause)
        cause = cause.getCause()
    return found


def root_cause(error: Exception) -> str:
    """What the innermost of them says."""
    found = causes(error)
    if not found:
        return str(error)
    return str(found[-1].getMessage() or found[-1].getClass().getSimpleName())
