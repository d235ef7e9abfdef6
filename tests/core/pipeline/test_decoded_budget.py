"""The bound on decoded samples holds, and never holds up the entry that is taken next."""

from __future__ import annotations

import threading

from embedstream_core.pipeline.decoded_budget import DecodedBudget
from probe_format import PATIENCE_S

SHORT_S = 0.1


def reserve(budget: DecodedBudget, position: int, size: int) -> threading.Event:
    """Reserve on another thread; return an event for when it has."""
    reserved = threading.Event()

    def run() -> None:
        budget.reserve(position, size)
        reserved.set()

    threading.Thread(target=run, daemon=True).start()
    return reserved


def test_entries_within_the_limit_do_not_wait() -> None:
    budget = DecodedBudget(10)

    assert all(reserve(budget, position, 5).wait(PATIENCE_S) for position in (1, 2))


def test_an_entry_beyond_the_limit_waits_for_room() -> None:
    budget = DecodedBudget(10)
    budget.reserve(0, 4)
    budget.reserve(1, 6)
    third = reserve(budget, 3, 3)
    assert not third.wait(SHORT_S)

    budget.release(4)

    assert third.wait(PATIENCE_S)


def test_the_next_entry_never_waits() -> None:
    budget = DecodedBudget(10)
    budget.reserve(1, 10)
    budget.reserve(0, 1_000)
    second = reserve(budget, 2, 1_000)
    assert not second.wait(SHORT_S)

    budget.release(1_000)
    assert not second.wait(SHORT_S)
    budget.release(10)

    assert second.wait(PATIENCE_S)


def test_closing_lets_every_thread_go_on() -> None:
    budget = DecodedBudget(10)
    waiting = [reserve(budget, position, 100) for position in (5, 6, 7)]
    assert not waiting[0].wait(SHORT_S)

    budget.close()

    assert all(one.wait(PATIENCE_S) for one in waiting)
