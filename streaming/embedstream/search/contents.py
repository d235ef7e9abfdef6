"""The content of a row: read again from its file or from its Kafka message."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from embedstream.kafka.login import check_login
from embedstream.search.answer import Neighbour
from embedstream_core.errors import ItemError, SetupError, SystemicError
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.records import Item
from embedstream_core.settings import ModalityName

__all__ = ["KafkaReader", "read_file_content", "read_kafka_content"]


def read_file_content(uri: str) -> bytes | None:
    """Read a row's content from this machine; return None if there is no such readable file."""
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path))
        return path.read_bytes() if parts.scheme == "file" and path.is_file() else None
    except (OSError, ValueError):
        return None


def read_kafka_content(
    neighbour: Neighbour,
    *,
    bootstrap_servers: str,
    settings: Mapping[str, Any] | None = None,
    reader: MessageReader | None = None,
) -> bytes | None:
    """Read a row's content from its message; return None if Kafka has deleted the message.

    `settings` are further ones of kafka-python's consumer, such as its credentials; `reader`
    is the stream's own if it is not the default.

    Raises:
        SetupError: no broker or no schema registry answers, or the message's compression is not
            supported here.
    """
    with closing(KafkaReader(bootstrap_servers, settings)) as kafka:
        message = kafka.read(neighbour.topic, neighbour.partition, neighbour.offset)
    if message is None:
        return None
    accepts: list[ModalityName] = (
        ["text"] if (neighbour.media_type or "").startswith("text/") else []
    )
    try:
        entry = (reader or MessageReader()).read(message, accepts=accepts)
    except ItemError:
        return None
    except SystemicError as error:
        raise SetupError(f"the message cannot be read: {error}") from None
    return entry.content if isinstance(entry, Item) else None


class KafkaReader:
    """Reads single messages; it connects when it is first used, and again after an error.

    `settings` are further ones of kafka-python's consumer, such as its credentials. One thread at a
    time may use it.
    """

    def __init__(self, bootstrap_servers: str, settings: Mapping[str, Any] | None = None) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._settings = settings or {}
        self._consumer: Any = None

    def read(self, topic: str, partition: int, offset: int) -> Message | None:
        """Return a message; None if Kafka has deleted it.

        Raises:
            SetupError: no broker answers, kafka-python cannot log in, or the message's compression
                is not supported here.
        """
        from kafka.errors import KafkaError, UnsupportedCodecError

        try:
            record = self._read_record(topic, partition, offset)
        except KafkaError as error:
            self.close()
            remedy = "check the address and the login"
            if isinstance(error, UnsupportedCodecError):
                remedy = "install lz4, python-snappy or zstandard, as kafka-python needs it"
            raise SetupError(
                f"the messages of topic '{topic}' cannot be read from Kafka at "
                f"{self._bootstrap_servers}: {error!r}; {remedy}"
            ) from error
        if record is None:
            return None
        position = f"{topic}-{partition}-{offset}"
        return Message(record.value, position, record.key, tuple(record.headers or ()))

    def close(self) -> None:
        """Close the connection, if there is one."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def _read_record(self, topic: str, partition: int, offset: int) -> Any:
        from kafka import KafkaConsumer, TopicPartition

        if self._consumer is None:
            check_login(self._settings)
            self._consumer = KafkaConsumer(
                bootstrap_servers=self._bootstrap_servers,
                group_id=None,
                bootstrap_timeout_ms=10_000,
                **self._settings,
            )
        consumer, place = self._consumer, TopicPartition(topic, partition)
        consumer.assign([place])
        # A poll of what is not there would wait for new messages.
        first, end = (
            consumer.beginning_offsets([place])[place],
            consumer.end_offsets([place])[place],
        )
        if not first <= offset < end:
            return None
        consumer.seek(place, offset)
        records = consumer.poll(timeout_ms=5000, max_records=1).get(place, [])
        return records[0] if records and records[0].offset == offset else None
