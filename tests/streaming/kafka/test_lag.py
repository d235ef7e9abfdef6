"""The age of the oldest unread message, from offsets over time."""

from __future__ import annotations

import pytest

from embedstream.kafka.lag import LagClock
from embedstream.kafka.topics import TopicState

IMAGES = ("images", 0)


def topics(*ends: int, name: str = "images") -> dict[str, TopicState]:
    numbered = dict(enumerate(ends))
    return {name: TopicState("id", dict.fromkeys(numbered, 0), numbered)}


def clock_of(*readings: tuple[float, int]) -> LagClock:
    """A clock that has read the end of one partition at these times."""
    clock = LagClock()
    for at, end in readings:
        clock.add(topics(end), at=at)
    return clock


def test_nothing_is_known_before_the_first_reading() -> None:
    assert LagClock().measure({IMAGES: 5}, now=100.0, newest_read=90.0) is None


def test_all_read_is_no_lag() -> None:
    assert clock_of((100.0, 7)).measure({IMAGES: 7}, now=500.0) == 0.0


@pytest.mark.parametrize(
    ("read", "seconds"),
    [(10, 100.0), (15, 95.0), (19, 91.0), (20, 90.0), (25, 85.0), (30, 0.0)],
)
def test_a_message_is_as_old_as_the_reading_that_passed_it(read: int, seconds: float) -> None:
    clock = clock_of((0.0, 10), (10.0, 20), (20.0, 30))
    assert clock.measure({IMAGES: read}, now=100.0) == pytest.approx(seconds)


def test_a_quiet_time_before_a_message_does_not_make_it_older() -> None:
    clock = clock_of((0.0, 10), *((float(at), 10) for at in range(5, 3600, 5)), (3600.0, 12))
    assert clock.measure({IMAGES: 10}, now=3601.0) == pytest.approx(6.0)


def test_the_partition_with_the_oldest_message_counts() -> None:
    clock = LagClock()
    for at, ends in ((0.0, (5, 5)), (10.0, (6, 5)), (20.0, (6, 6))):
        clock.add(topics(*ends), at=at)
    read = {IMAGES: 6, ("images", 1): 5}
    assert clock.measure(read, now=30.0) == pytest.approx(20.0)
    assert clock.measure({**read, IMAGES: 5}, now=30.0) == pytest.approx(30.0)


def test_a_message_from_before_the_start_is_as_old_as_the_newest_one_read() -> None:
    clock = clock_of((1000.0, 50), (1005.0, 60))
    assert clock.measure({IMAGES: 40}, now=1010.0) is None
    assert clock.measure({IMAGES: 40}, now=1010.0, newest_read=700.0) == 310.0
    # A producer's clock that is ahead: the message was there at the first reading.
    assert clock.measure({IMAGES: 40}, now=1010.0, newest_read=5000.0) == 10.0
    assert clock.measure({}, now=1010.0, newest_read=700.0) == 310.0


def test_a_topic_that_is_created_again_begins_anew() -> None:
    clock = clock_of((0.0, 100), (10.0, 200), (20.0, 3), (30.0, 5))
    assert clock.measure({IMAGES: 3}, now=40.0) == pytest.approx(20.0)


def test_a_partition_that_is_gone_is_forgotten() -> None:
    clock = clock_of((0.0, 1))
    clock.add(topics(4, name="texts"), at=5.0)
    clock.add(topics(6, name="texts"), at=10.0)
    assert clock.measure({("texts", 0): 6}, now=20.0) == 0.0


def test_memory_is_bounded_and_old_times_stay_known() -> None:
    """Three days of readings: what is old is known more coarsely."""
    step, now = 5.0, 3 * 86_400.0
    clock = clock_of(*((index * step, index * 7) for index in range(int(now / step))))
    (line,) = clock._lines.values()
    assert len(line.ends) == len(line.times) <= 240
    for age in (60.0, 3600.0, 86_400.0, 2 * 86_400.0):
        read = {IMAGES: int((now - age) / step) * 7}
        assert clock.measure(read, now=now) == pytest.approx(age, rel=0.01, abs=step)
