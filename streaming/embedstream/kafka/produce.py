"""Send files to a Kafka topic: images, texts and audio, and the lines of JSON Lines files."""

from __future__ import annotations

import itertools
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
    "find_files",
    "open_producer",
    "produce",
]

_AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_TEXT_SUFFIX = ".txt"
_LINES_SUFFIX = ".jsonl"
_JSON_WHITESPACE = b" \t\r\n"

# Above any broker's limit, so that the broker refuses a large message and gives the reason.
_MAX_REQUEST_BYTES = 256 * 2**20

_PRODUCER_SETTINGS = {
    "max_request_size": _MAX_REQUEST_BYTES,
    # An idempotent producer of kafka-python fails every message after the first refused one.
    "enable_idempotence": False,
    # Without idempotence, this keeps the order of a partition's messages when one is retried.
    "max_in_flight_requests_per_connection": 1,
}

MAX_QUEUED_BYTES = 64 * 2**20
"""Bytes that are sent before `produce` waits for their acknowledgements.

kafka-python queues without bound, and gives up what the broker does not have after two minutes.
"""

# Messages that are sent before `produce` waits: each takes memory besides its bytes.
_MAX_QUEUED = 10_000


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One Kafka message."""

    key: str
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, and those of a known suffix in the given folders, sorted within each.

    A suffix is known in any case; hidden files and folders count too.

    Raises:
        SetupError: a path does not exist or cannot be read, or there is no file.
    """
    registered = Image.registered_extensions().items()
    images = {suffix for suffix, format_name in registered if format_name in FORMATS}
    suffixes = {*images, *_AUDIO_SUFFIXES, _TEXT_SUFFIX, _LINES_SUFFIX}
    found: list[Path] = []
    try:
        for path in paths:
            if not path.exists():
                raise SetupError(f"'{path}' does not exist; name files or folders")
            if path.is_dir():
                named = [inner for inner in path.rglob("*") if inner.suffix.lower() in suffixes]
                # Folders may be named like files, and links may be broken.
                found += sorted(inner for inner in named if inner.is_file())
            else:
                found.append(path)
    except OSError as error:
        raise SetupError(f"'{error.filename}' cannot be read: {error.strerror}") from None
    if not found:
        raise SetupError(
            f"the given folders have no file of a known suffix ({', '.join(sorted(suffixes))}); "
            "name files, which may have any suffix"
        )
    return found


def build_messages(
    paths: Iterable[Path],
    *,
    form: Literal["bytes", "reference"],
    on_unreadable: Callable[[str, str], None],
) -> Iterator[OutgoingMessage]:
    """Yield a message for each file and for each line of a `.jsonl` file, reading one at a time.

    A line is sent as it is, in either form; blank ones are skipped. Its key is its field `id`, else
    its file and number. A file that cannot be read and a line that is not a JSON object are left
    out: `on_unreadable` gets the path, for a line with its number, and the reason.
    """
    for path in paths:
        try:
            if path.suffix.lower() == _LINES_SUFFIX:
                yield from _read_lines(path, on_unreadable)
            else:
                yield build_message(path, form=form)
        except OSError as error:
            on_unreadable(str(path), f"cannot be read: {error.strerror}")


def build_message(path: Path, *, form: Literal["bytes", "reference"]) -> OutgoingMessage:
    """Return a file as a message: its bytes, or a JSON reference to it.

    The key, and so the message's id, is the path as it was given.

    Raises:
        OSError: the file cannot be read.
    """
    name = path.as_posix()
    if form == "reference":
        value = json.dumps({"id": name, "uri": path.absolute().as_uri()}).encode()
        return OutgoingMessage(name, value)
    headers = (("file_name", os.fsencode(path.name)),)
    return OutgoingMessage(name, path.read_bytes(), headers)


def _read_lines(path: Path, on_broken: Callable[[str, str], None]) -> Iterator[OutgoingMessage]:
    with path.open("rb") as file:
        for number in itertools.count(1):
            if not (line := file.readline(_MAX_REQUEST_BYTES)):
                return
            name = f"{path.as_posix()}:{number}"
            if len(line) == _MAX_REQUEST_BYTES and not line.endswith(b"\n"):
                on_broken(name, f"the line has {_MAX_REQUEST_BYTES / 2**20:g} MiB or more")
                while line and not line.endswith(b"\n"):
                    line = file.readline(_MAX_REQUEST_BYTES)
                continue
            try:
                if line := line.strip(_JSON_WHITESPACE):
                    yield OutgoingMessage(_read_id(line) or name, line)
            except ValueError as error:
                on_broken(name, str(error))


def _read_id(line: bytes) -> str | None:
    """Return the field `id` of a JSON object, a value of another type than a string as its JSON.

    Raises:
        ValueError: it is not a JSON object; the message says why.
    """
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("the line is JSON but not an object")
        found = fields.get("id")
        if found is None or isinstance(found, str):
            return found
        return json.dumps(found, ensure_ascii=False)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON in UTF-8: {error}") from None


def produce(
    messages: Iterable[OutgoingMessage],
    *,
    bootstrap_servers: str,
    topic: str,
    client_settings: Mapping[str, Any] | None = None,
) -> list[tuple[str, str]]:
    """Send messages, each acknowledged by all in-sync replicas; return the failed keys and why.

    A failed message does not hold up the others. Messages of one key keep their order; one whose
    acknowledgement is lost is sent again, and then is in the topic twice.

    `client_settings` are kafka-python's, such as `security_protocol`.

    Raises:
        SetupError: no broker answers, the topic does not exist, or a client setting is wrong.
    """
    from kafka.errors import KafkaError, MessageSizeTooLargeError

    failed: list[tuple[str, str]] = []

    def record(key: str, error: Exception) -> None:
        if isinstance(error, MessageSizeTooLargeError):
            reason = "larger than the broker allows in one message (message.max.bytes)"
        elif isinstance(error, UnicodeEncodeError):
            reason = "its key, a path or an id, is not UTF-8 text"
        else:
            reason = f"{type(error).__name__}: {error}"
        failed.append((key, reason))

    read_end_offsets(bootstrap_servers, topic, client_settings=client_settings)
    with closing(open_producer(bootstrap_servers, client_settings)) as producer:
        queued, queued_bytes = 0, 0
        for message in messages:
            key, headers = message.key, list(message.headers)
            try:
                future = producer.send(
                    topic, key=key.encode(), value=message.value, headers=headers
                )
            except (KafkaError, UnicodeEncodeError) as error:
                record(key, error)
                continue
            future.add_errback(lambda error, key=key: record(key, error))
            queued += 1
            queued_bytes += len(message.value or b"")
            if queued_bytes > MAX_QUEUED_BYTES or queued >= _MAX_QUEUED:
                producer.flush()
                queued, queued_bytes = 0, 0
        producer.flush()
    return failed


def open_producer(bootstrap_servers: str, settings: Mapping[str, Any] | None) -> Any:
    """Return a producer of kafka-python whose messages all in-sync replicas acknowledge.

    Raises:
        SetupError: no broker answers, or a setting is wrong.
    """
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    merged = {**_PRODUCER_SETTINGS, **(settings or {}), "acks": "all"}
    try:
        return KafkaProducer(bootstrap_servers=bootstrap_servers, **merged)
    except (KafkaError, TypeError, ValueError, RuntimeError) as error:
        raise SetupError(
            f"no producer starts with these client settings: {error}; correct or omit them"
        ) from error
