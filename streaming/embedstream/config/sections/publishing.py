"""The section of what leaves the table for Kafka."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from embedstream.config.field_types import PositiveSeconds, Section, TopicName
from embedstream.config.secrets import Options

__all__ = ["PublishConfig", "PublishedRows"]

PublishedRows = Literal["all", "embeddings", "failures"]


class PublishConfig(Section):
    """A Kafka topic that the table's outcomes are published to, in the order of its commits."""

    topic: TopicName | None = None
    """The topic, which has to exist; without one nothing is published."""
    rows: PublishedRows = "all"
    """Which outcomes: `embeddings` and `all` include deletions; `failures` makes a dead-letter
    topic."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where publishing begins when nothing was published yet: with all rows of the table, or after
    the version that the table has at that moment."""
    follow: bool = True
    """Whether the stream's driver publishes, in a process of its own, while it runs."""
    bootstrap_servers: str | None = None
    """The brokers of the topic; by default those of `kafka`, with their credentials."""
    client: Options = Field(default_factory=dict)
    """Settings of kafka-python's producer, such as `compression_type` or `security_protocol`."""
    poll_s: PositiveSeconds = 0.2
    """Seconds between two looks at the table's log when it is followed continuously."""
