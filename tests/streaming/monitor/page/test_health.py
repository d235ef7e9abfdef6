from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from embedstream.monitor.page.flow import list_stages, list_topics
from embedstream.monitor.page.health import assess
from embedstream.monitor.page.history import draw_history
from embedstream.monitor.status import IndexStatus, PartitionStatus, PublishStatus, Status
from watched import NOW, make_history, make_status


def partition(number: int = 0, **changes: Any) -> PartitionStatus:
    fields: dict[str, Any] = {
        "topic": "images", "partition": number, "earliest": 100, "read": 5100, "end": 5200,
        "lag": 100, "margin": 5000,
    }  # fmt: skip
    return PartitionStatus(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "word", "tone"),
    [
        ({}, "Running", "good"),
        ({"partitions": (partition(lag=0),), "rows_per_s": 0}, "Idle", "idle"),
        ({"state": "starting"}, "Starting", "busy"),
        ({"state": "stopping"}, "Stopping", "busy"),
        ({"state": "stopped", "reason": "by SIGTERM"}, "Stopped", "off"),
        ({"state": "failed", "reason": "no broker"}, "Failed", "bad"),
        ({"state": "unwatched"}, "Table only", "off"),
    ],
)
def test_a_state_in_words(changes: dict[str, Any], word: str, tone: str) -> None:
    health = assess(make_status(**changes))

    assert (health.word, health.tone) == (word, tone)
    assert health.troubles == ((changes["reason"],) if "reason" in changes else ())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"last_micro_batch": NOW - timedelta(minutes=4)},
            "No commit for 4 min, while 240 messages wait.",
        ),
        (
            {"history": make_history(lag=0, growth=100), "lag_s": 300.0},
            "The lag grows",
        ),
        (
            {"partitions": (partition(), partition(1, margin=200))},
            "Kafka's retention is close: 200 messages of images, partition 1,",
        ),
        ({"index": IndexStatus(address="i", version=1000)}, "The index is 204 versions behind"),
        ({"index": IndexStatus(address="i", trouble="disk full")}, "in trouble: disk full"),
        ({"publish": PublishStatus(address="t", version=1000)}, "are 204 versions behind"),
        ({"publish": PublishStatus(address="t", trouble="no broker")}, "published: no broker"),
        ({"reason": "Kafka does not answer."}, "Kafka does not answer."),
    ],
)
def test_a_trouble_has_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    health = assess(make_status(**changes))

    assert (health.word, health.tone) == ("In trouble", "warn")
    assert len(health.troubles) == 1
    assert sentence in health.troubles[0]


def test_failures_of_the_last_minutes_count_and_not_earlier_ones() -> None:
    points = make_history()

    def fail(first: int, last: int) -> Status:
        changed = [
            point.model_copy(update={"failures": 400}) if first <= i < last else point
            for i, point in enumerate(points)
        ]
        return make_status(history=tuple(changed))

    assert assess(fail(0, 90)).troubles == ()
    assert "are failures" in assess(fail(110, 120)).troubles[0]


def test_a_burst_that_is_worked_off_is_no_trouble() -> None:
    lags = [0] * 60 + [9000 - 150 * i for i in range(60)]
    points = [
        point.model_copy(update={"lag": lag})
        for point, lag in zip(make_history(), lags, strict=True)
    ]

    assert assess(make_status(history=tuple(points), lag_s=300.0)).troubles == ()


def test_a_new_topic_whose_first_message_is_there_is_no_trouble() -> None:
    status = make_status(partitions=(partition(earliest=0, margin=10),))

    assert assess(status).troubles == ()


def test_the_busiest_stage_is_marked() -> None:
    stages = list_stages(make_status())

    assert [one.name for one in stages] == ["fetch", "decode", "forward", "write"]
    assert [one.is_busiest for one in stages] == [False, False, True, False]
    assert [one.share for one in stages] == [22, 41, 100, 15]
    assert not any(
        one.is_busiest or one.share for one in list_stages(make_status(stage_seconds={}))
    )


def test_a_topic_has_the_sum_of_its_partitions_and_their_least_margin() -> None:
    partitions = (
        partition(1, topic="texts", lag=0, margin=1),
        partition(0, lag=None),
        partition(1, margin=70),
        partition(0, topic="texts", margin=9),
    )

    topics = list_topics(make_status(partitions=partitions))

    assert [(one.name, one.lag, one.margin) for one in topics] == [
        ("images", 100, 70),
        ("texts", 100, 9),
    ]
    assert [one.partition for one in topics[1].partitions] == [0, 1]


def test_the_drawing_says_what_the_points_say() -> None:
    points = make_history(points=20)
    points = (*points[:5], points[5].model_copy(update={"lag": None}), *points[6:])
    status = make_status(history=points)

    history = draw_history(status)

    assert history is not None
    assert history.width == 120
    assert [slot.x for slot in history.slots] == list(range(100, 120))
    assert "lag unknown" in history.slots[5].text
    # A gap ends the area and begins another.
    assert history.lanes[0].path.count("M") == history.lanes[0].path.count("Z") == 2
    assert sum(int(span.embeddings.replace(",", "")) for span in history.spans) == sum(
        point.embeddings for point in points
    )
    assert draw_history(make_status(history=())) is None


def test_the_newest_rate_is_that_of_the_time_that_has_passed() -> None:
    points = make_history(points=2)
    points = (points[0], points[1].model_copy(update={"embeddings": 50, "failures": 0}))
    status = make_status(history=points, now=points[1].at + timedelta(seconds=5))

    history = draw_history(status)

    assert history is not None
    assert "10 embeddings/s" in history.slots[-1].text
