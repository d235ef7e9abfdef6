"""The pause of a swap: from the last micro-batch of the old models to the first of the new ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["Pause", "find_end", "list_work", "measure_pause"]


@dataclass(frozen=True, slots=True)
class Pause:
    """The seconds between the ends of two micro-batches, and how long a usual one takes."""

    seconds: float
    usual_s: float

    def __str__(self) -> str:
        beyond = max(0.0, self.seconds - self.usual_s)
        return (
            f"the first micro-batch of the new models was committed {self.seconds:.1f} s after the "
            f"last one of the old; a usual one takes {self.usual_s:.1f} s, so the pause was "
            f"{beyond:.1f} s"
        )


def list_work(progress: Sequence[Any]) -> list[Any]:
    """Return the progress of the micro-batches that had messages."""
    return [one for one in progress if one.numInputRows]


def measure_pause(before: Sequence[Any], first: Any, *, asked_at: float) -> Pause:
    """Compare the first micro-batch of the new models with the recent ones of the old.

    Args:
        before: The progress of the old query's recent micro-batches that had messages.
        first: The progress of the new query's first one.
        asked_at: The time at which the old query was asked to stop, in seconds since 1970; the
            pause does not begin before, for there may have been no messages.
    """
    began = max([asked_at, *map(find_end, before[-1:])])
    usual_s = statistics.median(map(_measure_s, before)) if before else _measure_s(first)
    return Pause(find_end(first) - began, usual_s)


def find_end(progress: Any) -> float:
    """Return when a micro-batch ended, in seconds since 1970."""
    began = datetime.fromisoformat(progress.timestamp)
    return began.timestamp() + _measure_s(progress)


def _measure_s(progress: Any) -> float:
    return float(progress.durationMs["triggerExecution"]) / 1000
