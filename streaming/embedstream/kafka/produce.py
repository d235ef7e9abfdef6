"""Images from files to a Kafka topic."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from embedstream.kafka.dev_broker import topic_end_offsets
from embedstream_core.errors import SetupError
from embedstream_core.settings import FORMATS

__all__ = [
    "Delivery",
    "OutgoingMessage",
    "find_images",
    "image_message",
    "image_messages",
    "produce",
]

_PRODUCER_SETTINGS = {
    # Above any broker's limit, so that it is the broker who refuses, and its word that is reported.
    "max_request_size": 256 * 2**20,
    # One refused message is the end of an idempotent producer of kafka-python: it fails all others.
    "enable_idempotence": False,
    # Without idempotence, this keeps the order of a partition's messages when one is retried.
    "max_in_flight_requests_per_connection": 1,
}

# kafka-python queues without bound, and gives up what the broker does not have after two minutes.
_MAX_QUEUED_BYTES = 64 * 2**20


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

    In folders an image is known by its suffix, in any case; hidden files and folders count too.

    Raises:
        SetupError: a path is not there or may not be looked at, or no image was found.
    """
    try:
        found = [file for path in paths for file in _images_at(path)]
    except OSError as error:
        raise SetupError(f"'{error.filename}' cannot be read: {error.strerror}") from None
    if not found:
        raise SetupError(f"no image ({', '.join(sorted(_image_suffixes()))}) in the folders named")
    return found


def _images_at(path: Path) -> list[Path]:
    if not path.exists():
        raise SetupError(f"'{path}' is not there; name files, or folders of images")
    if not path.is_dir():
        return [path]
    suffixes = _image_suffixes()
    named = [inner for inner in path.rglob("*") if inner.suffix.lower() in suffixes]
    # Folders may be named like images, and links may lead nowhere.
    return sorted(inner for inner in named if inner.is_file())


def _image_suffixes() -> set[str]:
    """What files of the formats that are decoded end with, as Pillow knows them."""
    found = Image.registered_extensions().items()
    return {suffix for suffix, format_ in found if format_ in FORMATS}


def image_messages(
    paths: Iterable[Path],
    *,
    form: Literal["bytes", "reference"],
    on_unreadable: Callable[[Path, str], None],
) -> Iterator[OutgoingMessage]:
    """Files as messages, each read when it is asked for.

    A file that cannot be read is left out, and told to `on_unreadable` with the reason.
    """
    for path in paths:
        try:
            message = image_message(path, form=form)
        except OSError as error:
            on_unreadable(path, f"cannot be read: {error.strerror}")
        else:
            yield message


def image_message(path: Path, *, form: Literal["bytes", "reference"]) -> OutgoingMessage:
    """A file as a message: its bytes, or a JSON reference to where it lies.

    The key, and so the image's id, is the path as it was given.

    Raises:
        OSError: the file cannot be read.
    """
    image_id = path.as_posix()
    if form == "reference":
        value = json.dumps({"id": image_id, "uri": path.absolute().as_uri()}).encode()
        return OutgoingMessage(name=image_id, key=image_id, value=value)
    headers = (("file_name", os.fsencode(path.name)),)
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

    A failed message does not hold up the others. Messages of one key keep their order; one whose
    acknowledgement is lost is sent again, and then is in the topic twice.

    `client_settings` are kafka-python's, such as `security_protocol`.

    Raises:
        SetupError: no broker answers, the topic is not there, or a client setting is wrong.
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
        queued_bytes = 0
        for message in messages:
            _send(producer, topic, message, settle)
            queued_bytes += len(message.value or b"")
            if queued_bytes > _MAX_QUEUED_BYTES:
                producer.flush()
                queued_bytes = 0
        producer.flush()
    return failed


@contextmanager
def _producer(bootstrap_servers: str, settings: Mapping[str, Any]) -> Iterator[Any]:
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    chosen = {**_PRODUCER_SETTINGS, **settings}
    try:
        producer = KafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", **chosen)
    except (KafkaError, TypeError, ValueError, RuntimeError) as error:
        raise SetupError(
            f"no producer starts with these client settings: {error}; correct or omit them"
        ) from error
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
    except (KafkaError, UnicodeEncodeError) as error:
        settle(Delivery(message, _reason(error)))
        return
    future.add_callback(lambda _: settle(Delivery(message)))
    future.add_errback(lambda error: settle(Delivery(message, _reason(error))))


def _reason(error: Exception) -> str:
    if "MessageSizeTooLarge" in type(error).__name__:
        return "larger than the broker allows in one message (message.max.bytes)"
    if isinstance(error, UnicodeEncodeError):
        return "its key, the path as it was given, is no UTF-8 text"
    return f"{type(error).__name__}: {error}"
