"""The offsets of a first start, compared with the partitions that the broker has."""

from __future__ import annotations

from typing import Any

import pytest

from embedstream.config.sections.kafka import KafkaConfig
from embedstream.kafka.topics import TopicState, check_starting_offsets
from embedstream_core.errors import SetupError

TOPICS = {"images": TopicState("id", earliest={0: 3, 1: 0}, end={0: 7, 1: 0})}


def kafka(starting_offsets: Any) -> KafkaConfig:
    return KafkaConfig(
        bootstrap_servers="localhost:9092", subscribe="images", starting_offsets=starting_offsets
    )


@pytest.mark.parametrize(
    "offsets",
    ["earliest", "latest", {"images": {0: 7, 1: 0}}, {"images": {0: -2, 1: -1}}],
    ids=str,
)
def test_offsets_of_all_partitions_are_taken(offsets: Any) -> None:
    check_starting_offsets(kafka(offsets), TOPICS)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ({"images": {0: 5}}, "it lacks partition 1 of images"),
        ({"pictures": {0: 5}}, "it lacks partition 0 of images, partition 1 of images"),
        ({"images": {0: 5, 1: 0, 2: 0}}, "it has also partition 2 of images"),
        ({"images": {0: 5, 1: 0}, "other": {0: 1}}, "it has also partition 0 of other"),
        ({"images": {0: 8, 1: 0}}, "begins at 8 in partition 0 of images, which ends at 7"),
    ],
)
def test_what_spark_would_end_the_query_for_is_refused(offsets: Any, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        check_starting_offsets(kafka(offsets), TOPICS)
