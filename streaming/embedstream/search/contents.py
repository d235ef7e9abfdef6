"""The content of a row: read again from its file or from its Kafka message."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from embedstream.search.scan import Neighbour
from embedstream_core.errors import ItemError, SetupError
from embedstream_core.messages.parse import Message, parse_message
from embedstream_core.records import Item
from embedstream_core.settings import ModalityName

__all__ = ["read_file_content", "read_kafka_content"]


def read_file_content(uri: str) -> bytes | None:
    """Read a row's content from this machine; return None if there is no such readable file."""
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path))
        return path.read_bytes() if parts.scheme == "file" and path.is_file() else None
    except (OSError, ValueError):
        return None


def read_kafka_content(neighbour: Neighbour, *, bootstrap_servers: str) -> bytes | None:
    """Read a row's content from its message; return None if Kafka has deleted the message.

    Raises:
        SetupError: no broker answers, or the message's compression is not supported here.
    """
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError, UnsupportedCodecError

    partition = TopicPartition(neighbour.topic, neighbour.partition)
    try:
        with closing(
            KafkaConsumer(
                bootstrap_servers=bootstrap_servers, group_id=None, bootstrap_timeout_ms=10_000
            )
        ) as consumer:
            consumer.assign([partition])
            consumer.seek(partition, neighbour.offset)
            records = consumer.poll(timeout_ms=5000, max_records=1).get(partition, [])
        if not records or records[0].offset != neighbour.offset:
            return None
        message = Message(value=records[0].value, position="")
        accepts: list[ModalityName] = (
            ["text"] if (neighbour.media_type or "").startswith("text/") else []
        )
        entry = parse_message(message, message_format="auto", id_header="", accepts=accepts)
        return entry.content if isinstance(entry, Item) else None
    except ItemError:
        return None
    except KafkaError as error:
        packages = "install lz4, python-snappy or zstandard, as kafka-python needs it"
        remedy = packages if isinstance(error, UnsupportedCodecError) else "check the address"
        raise SetupError(
            f"the messages of topic '{neighbour.topic}' cannot be read from Kafka at "
            f"{bootstrap_servers}: {error!r}; {remedy}, or leave --bootstrap-servers out"
        ) from error
