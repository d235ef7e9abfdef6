"""The content of a row: read again from its file or from its Kafka message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from embedstream.config.secrets import reveal
from embedstream.search.answer import Neighbour
from embedstream_core.errors import ItemError, SetupError
from embedstream_core.messages.parse import Message, parse_message
from embedstream_core.records import Item
from embedstream_core.settings import ModalityName

__all__ = ["convert_options", "read_file_content", "read_kafka_content"]

# Settings of Kafka's Java client that kafka-python has by another name.
_NAMES = {
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "ssl.truststore.location": "ssl_cafile",
    "ssl.keystore.location": "ssl_certfile",
    "ssl.key.password": "ssl_password",
}
_LOGIN = re.compile(r"""(username|password)\s*=\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")


def read_file_content(uri: str) -> bytes | None:
    """Read a row's content from this machine; return None if there is no such readable file."""
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path))
        return path.read_bytes() if parts.scheme == "file" and path.is_file() else None
    except (OSError, ValueError):
        return None


def convert_options(options: Mapping[str, str | SecretStr]) -> dict[str, Any]:
    """Return `kafka.options`, which are of Kafka's Java client, as settings of kafka-python.

    Raises:
        SetupError: the certificates are in a Java keystore, which kafka-python cannot read.
    """
    given = {name.lower().removeprefix("kafka."): value for name, value in reveal(options).items()}
    for store in ("truststore", "keystore"):
        if f"ssl.{store}.location" in given and given.get(f"ssl.{store}.type", "JKS") != "PEM":
            raise SetupError(
                f"the contact sheet cannot read Kafka with kafka.ssl.{store}.location, a Java "
                f"keystore; give one in PEM with kafka.ssl.{store}.type: PEM, or leave --config out"
            )
    settings: dict[str, Any] = {
        _NAMES[name]: value for name, value in given.items() if name in _NAMES
    }
    for key, quoted in _LOGIN.findall(given.get("sasl.jaas.config", "")):
        settings[f"sasl_plain_{key}"] = re.sub(r"\\(.)", r"\1", quoted[1:-1])
    return settings


def read_kafka_content(
    neighbour: Neighbour, *, bootstrap_servers: str, settings: Mapping[str, Any] | None = None
) -> bytes | None:
    """Read a row's content from its message; return None if Kafka has deleted the message.

    `settings` are further ones of kafka-python's consumer, such as its credentials.

    Raises:
        SetupError: no broker answers, or the message's compression is not supported here.
    """
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError, UnsupportedCodecError

    partition = TopicPartition(neighbour.topic, neighbour.partition)
    try:
        with closing(
            KafkaConsumer(
                bootstrap_servers=bootstrap_servers,
                group_id=None,
                bootstrap_timeout_ms=10_000,
                **(settings or {}),
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
