"""Which messages to embed again; imports no Spark, so that the command line starts quickly."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["Kind", "OffsetRange", "Selection"]

Kind = Literal["replay", "backfill"]


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets of a partition, the last one included."""

    topic: str
    partition: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of the table; a row must satisfy all that are given.

    `since` and `until` compare the message's timestamp in Kafka; `until` is excluded. `codes` are
    of failures.
    """

    offsets: tuple[OffsetRange, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    failures: bool = False
    codes: tuple[str, ...] = ()
