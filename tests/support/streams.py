"""Topics to write to and streams to run, for tests of the whole way."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from pyspark.sql import SparkSession

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.kafka.admin import create_topic, read_end_offsets
from embedstream.kafka.produce import OutgoingMessage, produce
from embedstream.stream.job import Stream, start_stream
from embedstream.stream.preflight import Consent, Finding, check_start
from embedstream.worker.model import prepare
from embedstream.worker.tally import Tallies
from embedstream_core.models.card import PreparedModel
from oracle import Position

__all__ = ["Topic", "drain", "image", "json_message", "prepared", "refusal"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic of the test's own."""

    name: str
    bootstrap_servers: str

    @classmethod
    def create(cls, bootstrap_servers: str, *, partitions: int, prefix: str = "images") -> Topic:
        topic = cls(f"{prefix}-{uuid.uuid4().hex[:8]}", bootstrap_servers)
        create_topic(bootstrap_servers, topic.name, partitions=partitions)
        return topic

    def send(self, messages: Iterable[OutgoingMessage]) -> None:
        failed = produce(messages, bootstrap_servers=self.bootstrap_servers, topic=self.name)
        assert failed == []

    def end_offsets(self) -> dict[int, int]:
        return read_end_offsets(self.bootstrap_servers, self.name)

    def positions(self) -> set[Position]:
        """Of every message sent so far."""
        return {
            Position(self.name, partition, offset)
            for partition, end in self.end_offsets().items()
            for offset in range(end)
        }


def image(name: str, content: bytes | None, **headers: str) -> OutgoingMessage:
    """A message of image bytes; without content, a tombstone."""
    pairs = tuple((key, value.encode()) for key, value in headers.items())
    return OutgoingMessage(name, content, pairs)


def json_message(name: str, **fields: object) -> OutgoingMessage:
    """A message in JSON."""
    return OutgoingMessage(name, json.dumps(fields).encode())


def prepared(config: StreamConfig | BulkFilesConfig) -> tuple[PreparedModel, ...]:
    """The models of a configuration's encoders, in their order."""
    return tuple(map(prepare, config.all_encoders))


def drain(spark: SparkSession, config: StreamConfig, *, tallies: Tallies | None = None) -> Stream:
    """Run the stream over all that its topic holds now."""
    stream = start_stream(spark, config, prepared(config), until="drained", tallies=tallies)
    stream.query.awaitTermination()
    return stream


def refusal(spark: SparkSession, config: StreamConfig, subject: str, *, adopt: bool = False) -> str:
    """What one of the checks before a start says against a configuration."""
    findings: list[Finding] = []
    check_start(spark, config, findings.append, Consent(adopt=adopt))
    (found,) = (one for one in findings if one.subject == subject)
    assert not found.passed, found.detail
    return found.detail
