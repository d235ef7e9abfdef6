"""The sections of what a stream reads, and when."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    model_validator,
)

from embedstream.config.field_types import PositiveSeconds, Seconds, Section, Time, check_topic_name
from embedstream.config.options import check_kafka_options
from embedstream.config.secrets import Options

__all__ = ["KafkaConfig", "TriggerConfig"]


def _check_range(value: int, least: int, bits: int) -> int:
    if value < least:
        raise ValueError(f"should be {least} or more, not {value}")
    if value >= 1 << (bits - 1):
        raise ValueError(f"{value} is too large for an integer of {bits} bits, as Kafka has here")
    return value


_Int = AfterValidator(partial(_check_range, least=1, bits=32))
_Long = AfterValidator(partial(_check_range, least=1, bits=64))
_Offset = Annotated[int, AfterValidator(partial(_check_range, least=-2, bits=64))]
_Partition = Annotated[int, AfterValidator(partial(_check_range, least=0, bits=32))]


class KafkaConfig(Section):
    """Where the messages come from."""

    bootstrap_servers: str
    """The brokers, as host:port, separated by commas."""
    subscribe: str | None = None
    """Topics to read, separated by commas."""
    subscribe_pattern: str | None = None
    """A Java regular expression of the topics to read."""
    assign: dict[str, Annotated[list[_Partition], Field(min_length=1)]] | None = Field(
        None, min_length=1
    )
    """Partitions to read, for each topic: `{images: [0, 1]}`."""
    starting_offsets: Literal["earliest", "latest"] | dict[str, dict[_Partition, _Offset]] = (
        "earliest"
    )
    """Where the first start begins: `earliest`, `latest`, or an offset for each partition,
    `{images: {0: 100}}` (-2 earliest, -1 latest). Later starts resume from the checkpoint."""
    starting_timestamp: Time | None = None
    """The time at which the first start begins, in UTC unless it names a zone: `2026-01-31T12:00`;
    instead of starting_offsets."""
    max_offsets_per_trigger: Annotated[PositiveInt, _Long] | None = None
    """The most messages in one micro-batch; by default 1,024 for each core, and 65,536 for each GPU
    if there are any."""
    min_partitions: Annotated[PositiveInt, _Int] | None = None
    """The fewest tasks of a micro-batch; by default, as many as run at once."""
    isolation: Literal["read_committed", "read_uncommitted"] = "read_committed"
    """Whether messages of open or aborted transactions are read."""
    on_data_loss: Literal["fail", "continue"] = "fail"
    """What to do when messages were deleted before they were read."""
    commit_group: str | None = Field(None, pattern=r"^\S(.*\S)?$", max_length=255)
    """A consumer group to which the offsets of each committed micro-batch are written too, so that
    tools that watch Kafka's groups see the lag. The stream never reads it: the checkpoint and the
    table's commits say what was read."""
    options: Options = Field(default_factory=dict)
    """Further options of Spark's Kafka source, `kafka.*` ones for its client. An option that has a
    key here, or that the stream needs unchanged, is refused."""

    @model_validator(mode="after")
    def _check(self) -> KafkaConfig:
        check_kafka_options(self.options, max_offsets_per_trigger=self.max_offsets_per_trigger)
        chosen = [self.subscribe, self.subscribe_pattern, self.assign]
        if sum(choice is not None for choice in chosen) != 1:
            raise ValueError("give exactly one of subscribe, subscribe_pattern and assign")
        if self.starting_timestamp and "starting_offsets" in self.model_fields_set:
            raise ValueError("give starting_offsets or starting_timestamp, not both")
        subscribed = () if self.subscribe is None else self.subscribe.split(",")
        for topic in (*subscribed, *(self.assign or ())):
            check_topic_name(topic.strip())
        return self


class TriggerConfig(Section):
    """When a micro-batch starts."""

    interval_s: Seconds = 1.0
    """Seconds between the starts of micro-batches; with 0 the next one starts at once."""
    stop_timeout_s: PositiveSeconds = 300.0
    """Seconds that a stop waits for the micro-batch in flight."""
