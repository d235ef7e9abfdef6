"""The pause of a swap, from the progress of two queries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from embedstream.stream.pause import list_work, measure_pause

BEGAN = 1_795_678_800.0


def progress(second: float, seconds: float, rows: int = 8) -> Any:
    """A micro-batch that began so many seconds after `BEGAN`, at 07:40 UTC."""
    return SimpleNamespace(
        timestamp=f"2026-11-26T07:40:{second:06.3f}Z",
        durationMs={"triggerExecution": seconds * 1000},
        numInputRows=rows,
    )


def test_micro_batches_without_messages_are_left_out() -> None:
    work = progress(0, 1)
    assert list_work([progress(0, 1, rows=0), work]) == [work]


def test_the_pause_is_from_end_to_end_less_a_usual_micro_batch() -> None:
    before = [progress(0, 2), progress(2, 2), progress(4, 3)]
    pause = measure_pause(before, progress(8, 2.5), asked_at=BEGAN + 5)
    assert (pause.seconds, pause.usual_s) == (3.5, 2)
    assert str(pause).endswith("a usual one takes 2.0 s, so the pause was 1.5 s")


def test_time_without_messages_before_the_swap_does_not_count() -> None:
    pause = measure_pause([progress(0, 1)], progress(31, 1), asked_at=BEGAN + 30)
    assert pause.seconds == 2


def test_without_an_earlier_micro_batch_the_first_one_is_the_usual_one() -> None:
    pause = measure_pause([], progress(31, 2), asked_at=BEGAN + 30)
    assert (pause.seconds, pause.usual_s) == (3, 2)
