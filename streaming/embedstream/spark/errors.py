"""Errors of Spark in one line."""

from __future__ import annotations

__all__ = ["describe_error"]


def describe_error(error: Exception) -> str:
    """Return the last line that names an error: the Python worker's own, where it was there."""
    trace = f"{error}\n{getattr(error, '_stackTrace', '')}"
    lines = [line.strip().removeprefix("Caused by: ") for line in trace.splitlines()]
    named = [line for line in lines if "Error: " in line or "Exception: " in line]
    return named[-1] if named else lines[0]
