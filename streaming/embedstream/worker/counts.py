"""Counts of outcomes by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from embedstream_core.errors import Code

__all__ = ["CommitReport", "Kinds", "RowKind", "select_failures"]

Kinds = Counter[str | None]
"""Outcomes by error code; embeddings under None, and deletions, no failures, under `deleted`."""


class RowKind(NamedTuple):
    """What rows are counted by; `code` is None for embeddings."""

    topic: str
    model_id: str | None
    code: str | None


def select_failures(kinds: Kinds) -> Counter[str]:
    """Return the failures alone, by error code."""
    return Counter({one: n for one, n in kinds.items() if one not in (None, Code.DELETED)})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReport:
    """The outcomes of a commit to the table, and the seconds that it took."""

    embeddings: int
    failures: Counter[str]
    duration_s: float
    deleted: int = 0

    @property
    def rows(self) -> int:
        """The number of outcomes of all kinds."""
        return self.embeddings + self.failures.total() + self.deleted
