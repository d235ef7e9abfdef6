"""Send images from files to a Kafka topic."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from embedstream.kafka.admin import read_end_offsets
from embedstream_core.errors import SetupError
from embedstream_core.settings import FORMATS

__all__ = [
    "MAX_QUEUED_BYTES",
    "OutgoingMessage",
    "build_message",
    "build_messages",
    "find_image_files",
    "produce",
]

_PRODUCER_SETTINGS = {
    # Above any broker's limit, so that the broker refuses a large message and gives the reason.
    "max_request_size": 256 * 2**20,
    # An idempotent producer of kafka-python fails every message after the first refused one.
    "enable_idempotence": False,
    # Without idempotence, this keeps the order of a partition's messages when one is retried.
    "max_in_flight_requests_per_connection": 1,
}

MAX_QUEUED_BYTES = 64 * 2**20
"""Bytes that are sent before `produce` waits for their acknowledgements.

kafka-python queues without bound, and gives up what the broker does not have after two minutes.
"""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One Kafka message."""

    key: str
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def find_image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, and the images in the given folders, sorted within each.

    In folders the suffix identifies an image, in any case; hidden files and folders count too.

    Raises:
        SetupError: a path does not exist or cannot be read, or there is no image.
    """
    registered = Image.registered_extensions().items()
    suffixes = {suffix for suffix, format_name in registered if format_name in FORMATS}
    found: list[Path] = []
    try:
        for path in paths:
            if not path.exists():
                raise SetupError(f"'{path}' does not exist; name files, or folders of images")
            if path.is_dir():
                named = [inner for inner in path.rglob("*") if inner.suffix.lower() in suffixes]
                # Folders may be named like images, and links may be broken.
                found += sorted(inner for inner in named if inner.is_file())
            else:
                found.append(path)
    except OSError as error:
        raise SetupError(f"'{error.filename}' cannot be read: {error.strerror}") from None
    if not found:
        raise SetupError(f"no image ({', '.join(sorted(suffixes))}) in the given folders")
    return found


def build_messages(
    paths: Iterable[Path],
    *,
    form: Literal["bytes", "reference"],
    on_unreadable: Callable[[Path, str], None],
) -> Iterator[OutgoingMessage]:
    """Yield a message for each file, reading one file at a time.

    A file that cannot be read is left out: `on_unreadable` gets its path and the reason.
    """
    for path in paths:
        try:
            message = build_message(path, form=form)
        except OSError as error:
            on_unreadable(path, f"cannot be read: {error.strerror}")
        else:
            yield message


def build_message(path: Path, *, form: Literal["bytes", "reference"]) -> OutgoingMessage:
    """Return a file as a message: its bytes, or a JSON reference to it.

    The key, and so the image's id, is the path as it was given.

    Raises:
        OSError: the file cannot be read.
    """
    image_id = path.as_posix()
    if form == "reference":
        value = json.dumps({"id": image_id, "uri": path.absolute().as_uri()}).encode()
        return OutgoingMessage(image_id, value)
    headers = (("file_name", os.fsencode(path.name)),)
    return OutgoingMessage(image_id, path.read_bytes(), headers)


def produce(
    messages: Iterable[OutgoingMessage],
    *,
    bootstrap_servers: str,
    topic: str,
    client_settings: Mapping[str, Any] | None = None,
) -> list[tuple[OutgoingMessage, str]]:
    """Send messages, each acknowledged by all in-sync replicas; return the failed ones and why.

    A failed message does not hold up the others. Messages of one key keep their order; one whose
    acknowledgement is lost is sent again, and then is in the topic twice.

    `client_settings` are kafka-python's, such as `security_protocol`.

    Raises:
        SetupError: no broker answers, the topic does not exist, or a client setting is wrong.
    """
    from kafka.errors import KafkaError, MessageSizeTooLargeError

    failed: list[tuple[OutgoingMessage, str]] = []

    def record(message: OutgoingMessage, error: Exception) -> None:
        if isinstance(error, MessageSizeTooLargeError):
            reason = "larger than the broker allows in one message (message.max.bytes)"
        elif isinstance(error, UnicodeEncodeError):
            reason = "its key, the path as it was given, is not UTF-8 text"
        else:
            reason = f"{type(error).__name__}: {error}"
        failed.append((message, reason))

    read_end_offsets(bootstrap_servers, topic, client_settings=client_settings)
    with closing(_open_producer(bootstrap_servers, client_settings)) as producer:
        queued_bytes = 0
        for message in messages:
            key, headers = message.key, list(message.headers)
            try:
                future = producer.send(
                    topic, key=key.encode(), value=message.value, headers=headers
                )
            except (KafkaError, UnicodeEncodeError) as error:
                record(message, error)
                continue
            future.add_errback(lambda error, sent=message: record(sent, error))
            queued_bytes += len(message.value or b"")
            if queued_bytes > MAX_QUEUED_BYTES:
                producer.flush()
                queued_bytes = 0
        producer.flush()
    return failed


def _open_producer(bootstrap_servers: str, settings: Mapping[str, Any] | None) -> Any:
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    merged = {**_PRODUCER_SETTINGS, **(settings or {}), "acks": "all"}
    try:
        return KafkaProducer(bootstrap_servers=bootstrap_servers, **merged)
    except (KafkaError, TypeError, ValueError, RuntimeError) as error:
        raise SetupError(
            f"no producer starts with these client settings: {error}; correct or omit them"
        ) from error
