"""Packages that only some features need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedstream_core.errors import MissingExtra

__all__ = ["require_extra"]


@contextmanager
def require_extra(extra: str, *, feature: str) -> Iterator[None]:
    """Enclose the imports of an extra's packages; raise MissingExtra if one is not installed."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(feature=feature, extra=extra) from error
