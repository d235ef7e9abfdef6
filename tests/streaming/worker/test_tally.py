"""What the driver learns of a micro-batch: counts that add up, few times, tallies that go."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from embedstream.worker.counts import RowKind
from embedstream.worker.tally import FailedMessage, Tallies, Tally, _Merge, round_times
from embedstream_core.errors import Code, Stage
from embedstream_core.pipeline.work_record import WorkRecord
from embedstream_core.records import Embedding, Failure, Media, Outcome

NOW = 1_800_000_000.3
EMBEDDING = Embedding(np.zeros(2, np.float32), Media("image/png"), "0" * 64, "one")
OTHER = Embedding(np.zeros(2, np.float32), Media("image/png"), "0" * 64, "two")


def failure(code: Code, message: str = "why", model_id: str | None = "one") -> Failure:
    return Failure(code, Stage.DECODE, message, model_id=model_id)


def tally_of(*messages: tuple[str, int, float | None, Sequence[Outcome]]) -> Tally:
    """Return the tally of messages: their topic, offset, time and outcomes."""
    tally = Tally()
    appended = np.array([np.nan if at is None else at for _, _, at, _ in messages])
    positions = [(topic, 0, offset) for topic, offset, _, _ in messages]
    tally.add_rows(positions, appended, [tuple(outcomes) for *_, outcomes in messages])
    return tally


def test_rows_are_counted_by_topic_model_and_code() -> None:
    tally = tally_of(
        ("images", 0, 5.0, [EMBEDDING, OTHER]),
        ("images", 1, 5.0, [EMBEDDING, failure(Code.IMAGE_CORRUPT, model_id="two")]),
        ("texts", 0, 5.0, [failure(Code.MEDIA_UNSUPPORTED, model_id=None)]),
        ("texts", 1, None, [failure(Code.DELETED, model_id=None)]),
    )
    assert tally.rows == {
        RowKind("images", "one", None): 2,
        RowKind("images", "two", None): 1,
        RowKind("images", "two", "image_corrupt"): 1,
        RowKind("texts", None, "media_unsupported"): 1,
        RowKind("texts", None, "deleted"): 1,
    }
    assert tally.kinds == {None: 3, "image_corrupt": 1, "media_unsupported": 1, "deleted": 1}
    # Messages, not rows; one has no time.
    assert tally.appended.total() == 3
    assert tally.newest_failures.keys() == {"image_corrupt", "media_unsupported"}


def test_the_newest_failure_of_a_code_is_kept_with_a_bounded_reason() -> None:
    first = tally_of(
        ("images", 7, 20.0, [failure(Code.IMAGE_CORRUPT, "newest" + "x" * 5000)]),
        ("images", 8, 10.0, [failure(Code.IMAGE_CORRUPT, "older")]),
    )
    second = tally_of(("images", 9, 15.0, [failure(Code.IMAGE_CORRUPT, "between")]))
    second.merge(first)
    newest = second.newest_failures["image_corrupt"]
    assert newest[:4] == (20.0, "images", 0, 7)
    assert newest.reason.startswith("newest")
    assert len(newest.reason) == 300
    assert FailedMessage(2.0, "a", 0, 0, "") > FailedMessage(1.0, "b", 9, 9, "z")


def test_parts_of_a_micro_batch_add_up() -> None:
    record = WorkRecord()
    record.add_seconds("fetch", 1.5)
    record.add_cache_hits(2)
    parts = []
    for _ in range(2):
        part = tally_of(("images", 0, 5.0, [EMBEDDING]))
        part.add_work(record)
        parts.append(pickle.loads(pickle.dumps(part)))
    first, second = parts
    first.merge(second)
    assert first.seconds == {"fetch": 3.0}
    assert first.cache_hits == 4
    assert [*first.appended.values()] == [2]
    assert first.rows == {RowKind("images", "one", None): 2}


@pytest.mark.parametrize("age", [0.0, 0.7, 2.0, 5.0, 100.0, 86_400.0, 3e7, 2e9])
def test_the_error_of_a_rounded_time_is_known(age: float) -> None:
    times = NOW - age * np.linspace(0.98, 1.02, 1001)
    error = np.abs(round_times(times, now=NOW) - times).max()
    assert error <= max(1 / 16, 1.02 * age / 32)


@pytest.mark.parametrize(("backlog_s", "most"), [(60.0, 120), (86_400.0, 300), (3e12, 700)])
def test_times_are_few_whatever_the_backlog(backlog_s: float, most: int) -> None:
    times = NOW - np.concatenate(
        [np.linspace(0, backlog_s, 5000), np.geomspace(0.01, backlog_s, 5000)]
    )
    assert len(set(round_times(times, now=NOW).tolist())) <= most
    # While a micro-batch lasts, its messages get older; all are rounded to one grid.
    lasted = {
        one for s in np.linspace(0, 600, 50) for one in round_times(times, now=NOW + s).tolist()
    }
    assert len(lasted) <= 2 * most


def test_times_of_clocks_that_are_wrong_are_rounded_too() -> None:
    times = np.array([-1e10, 0.0, NOW + 5, NOW + 1e9, 9e12])
    rounded = round_times(times, now=NOW)
    assert np.all(np.abs(rounded - times) <= np.maximum(1 / 16, np.abs(times - NOW) / 32))


def test_tallies_that_are_never_taken_go() -> None:
    """Micro-batches that failed: the driver keeps the last eight."""
    merge = _Merge()
    held: dict[tuple[str | None, str | None], Tally] = {}
    for number in range(100):
        for offset in range(3):
            part = tally_of(("images", offset, 5.0, [EMBEDDING]))
            held = merge.addInPlace(held, {("run", str(number)): part})
    assert [*held] == [("run", str(number)) for number in range(92, 100)]
    assert all(one.rows.total() == 3 for one in held.values())


class Held:
    """What the driver sees of an accumulator."""

    def __init__(self, value: dict[tuple[str, str], Tally]) -> None:
        self.value = value


def test_a_tally_is_taken_once() -> None:
    tally = tally_of(("images", 0, 5.0, [EMBEDDING]))
    tallies = Tallies(Held({("run", "3"): tally}))  # type: ignore[arg-type]
    assert tallies.take("run", 4) == Tally()
    assert tallies.take("run", 3) is tally
    assert tallies.take("run", 3) == Tally()
