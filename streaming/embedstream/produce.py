"""Images from files to a Kafka topic."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedstream.broker import topic_end_offsets
from embedstream_core.errors import SetupError

__all__ = ["Delivery", "OutgoingMessage", "find_images", "image_message", "produce"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})

# Above any broker's limit, so that it is the broker who refuses, and its word that is reported.
_MAX_REQUEST_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One Kafka message. `name` is how reports call it."""

    name: str
    key: str
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one message; `error` is None where the broker has it."""

    message: OutgoingMessage
    error: str | None = None


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files named, and the images in the folders named, sorted within each.

    Raises:
        SetupError: a path is not there, or no image was found.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SetupError(f"'{path}' is not there; name files, or folders of images")
        inner = sorted(path.rglob("*")) if path.is_dir() else []
        found += [file for file in inner if file.suffix.lower() in IMAGE_SUFFIXES]
        found += [] if path.is_dir() else [path]
    if not found:
        raise SetupError(f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in the folders named")
    return found


def image_message(path: Path, *, form: Literal["bytes", "reference"]) -> OutgoingMessage:
    """A file as a message: its bytes, or a JSON reference to where it lies.

    The key, and so the image's id, is the path as it was given.
    """
    image_id = path.as_posix()
    if form == "reference":
        value = json.dumps({"id": image_id, "uri": path.absolute().as_uri()}).encode()
        return OutgoingMessage(name=image_id, key=image_id, value=value)
    headers = (("file_name", path.name.encode()),)
    return OutgoingMessage(image_id, key=image_id, value=path.read_bytes(), headers=headers)


def produce(
    messages: Iterable[OutgoingMessage],
    *,
    bootstrap_servers: str,
    topic: str,
    client_settings: Mapping[str, Any] | None = None,
    on_delivery: Callable[[Delivery], None] | None = None,
) -> list[Delivery]:
    """Send messages, each acknowledged by all in-sync replicas; return those that failed.

    `client_settings` are kafka-python's, such as `security_protocol`.

    Raises:
        SetupError: no broker answers, or the topic is not there.
    """
    failed: list[Delivery] = []

    def settle(delivery: Delivery) -> None:
        if delivery.error is not None:
            failed.append(delivery)
        if on_delivery is not None:
            on_delivery(delivery)

    settings = client_settings or {}
    topic_end_offsets(bootstrap_servers, topic, client_settings=settings)
    with _producer(bootstrap_servers, settings) as producer:
        for message in messages:
            _send(producer, topic, message, settle)
        producer.flush()
    return failed


@contextmanager
def _producer(bootstrap_servers: str, settings: Mapping[str, Any]) -> Iterator[Any]:
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=bootstrap_servers,
        acks="all",
        max_request_size=_MAX_REQUEST_BYTES,
        **settings,
    )
    try:
        yield producer
    finally:
        producer.close()


def _send(
    producer: Any, topic: str, message: OutgoingMessage, settle: Callable[[Delivery], None]
) -> None:
    from kafka.errors import KafkaError

    try:
        future = producer.send(
            topic, key=message.key.encode(), value=message.value, headers=list(message.headers)
        )
    except KafkaError as error:
        settle(Delivery(message, _reason(error)))
        return
    future.add_callback(lambda _: settle(Delivery(message)))
    future.add_errback(lambda error: settle(Delivery(message, _reason(error))))


def _reason(error: Exception) -> str:
    if "MessageSizeTooLarge" in type(error).__name__:
        return "larger than the broker allows in one message (message.max.bytes)"
    return f"{type(error).__name__}: {error}"
