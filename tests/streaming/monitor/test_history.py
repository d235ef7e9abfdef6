"""Rates, points and percentiles of the last hour."""

from __future__ import annotations

import pytest

from embedstream.monitor.history import POINT_S, History, Work

START = 1_800_000_000.0
"""A multiple of a point's seconds."""


def work(start: float, end: float, rows: int, failures: int = 0) -> Work:
    return Work(START + start, START + end, rows - failures, failures, rows, {"decode": rows / 10})


def test_the_rate_is_that_of_the_last_minute() -> None:
    history = History()
    for second in range(0, 120, 2):
        history.add(work(second, second + 2, 20), {})
    rates = history.measure_rates(START + 121)
    assert rates.rows_per_s == pytest.approx(10)
    assert rates.stage_seconds == {"decode": pytest.approx(1)}


def test_the_rate_of_the_first_seconds_is_not_that_of_a_minute() -> None:
    history = History()
    history.add(work(0, 4, 40), {})
    assert history.measure_rates(START + 5).rows_per_s == pytest.approx(10)


@pytest.mark.parametrize("after", [0, 10, 29, 44])
def test_the_rate_does_not_fall_while_a_long_micro_batch_runs(after: float) -> None:
    history = History()
    for number in range(4):
        history.add(work(30 * number, 30 * number + 30, 300), {})
    assert history.measure_rates(START + 120 + after).rows_per_s == pytest.approx(10)


def test_the_rate_goes_to_zero_when_nothing_comes() -> None:
    history = History()
    for second in range(60):
        history.add(work(second, second + 1, 10), {})
    falling = [history.measure_rates(START + 60 + after).rows_per_s for after in (30, 45, 61)]
    assert falling == [pytest.approx(5), pytest.approx(2.5), 0]


def test_without_micro_batches_the_rate_is_zero() -> None:
    assert History().measure_rates(START).rows_per_s == 0


def test_points_have_no_gaps_and_keep_every_row() -> None:
    history = History()
    history.add(work(10, 20, 7, failures=3), {})
    # A micro-batch of three points.
    history.add(work(75, 165, 91, failures=1), {})
    history.set_lag(START + 170, 12)
    points = history.list_points(START + 200)
    seconds = [one.at.timestamp() - START for one in points]
    assert seconds == [POINT_S * number for number in range(7)]
    assert [one.embeddings for one in points] == [4, 0, 15, 30, 30, 15, 0]
    assert sum(one.failures for one in points) == 4
    assert [one.lag for one in points] == [None, None, None, None, None, 12, None]


def test_only_an_hour_is_kept() -> None:
    history = History()
    for second in range(0, 3 * 3600, 15):
        history.add(work(second, second + 15, 5), {1.0: 5})
    now = START + 3 * 3600
    points = history.list_points(now)
    assert len(points) == 120
    # The last one has just begun.
    assert {one.embeddings for one in points[:-1]} == {10}
    assert len(history._slots) <= 121
    assert history.list_points(now + 7200)[0].embeddings == 0
    assert history.find_percentiles(now + 7200) is None


def test_percentiles_are_within_a_tenth() -> None:
    history = History()
    history.add(work(0, 10, 1000), {0.1 * number: 1 for number in range(1, 1001)})
    found = history.find_percentiles(START + 10)
    assert found is not None
    assert (found.p50, found.p95, found.p99) == pytest.approx((50, 95, 99), rel=0.1)


def test_percentiles_take_any_seconds() -> None:
    history = History()
    history.add(work(0, 10, 3), {0.0: 1, 1e-9: 1, 1e7: 1})
    found = history.find_percentiles(START + 10)
    assert found is not None
    assert found.p50 <= 0.011
    assert found.p99 == pytest.approx(1e7, rel=0.1)
