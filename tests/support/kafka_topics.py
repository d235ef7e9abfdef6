"""What happens to a topic while a stream is away: it is deleted, or retention takes messages."""

from __future__ import annotations

import time

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from streams import Topic

__all__ = ["delete_before", "delete_topic"]


def delete_topic(topic: Topic) -> None:
    admin = KafkaAdminClient(bootstrap_servers=topic.bootstrap_servers)
    try:
        admin.delete_topics([topic.name])
        deadline = time.monotonic() + 30
        while topic.name in admin.list_topics():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        admin.close()


def delete_before(topic: Topic, offsets: dict[int, int]) -> None:
    """What retention does: the messages before these offsets go."""
    admin = KafkaAdminClient(bootstrap_servers=topic.bootstrap_servers)
    try:
        admin.delete_records(
            {TopicPartition(topic.name, number): offset for number, offset in offsets.items()}
        )
    finally:
        admin.close()
