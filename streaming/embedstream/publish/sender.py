"""Messages on their way to the topic."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol, Self

from embedstream.kafka.admin import read_end_offsets
from embedstream.kafka.produce import MAX_QUEUED_BYTES, open_producer
from embedstream.publish.messages import Published
from embedstream_core.errors import EmbedstreamError

__all__ = ["MessageSink", "PublishFailed", "Sender"]

_LOG = logging.getLogger(__name__)

# Each message takes memory besides its bytes.
_MAX_QUEUED = 10_000

# A broker ends the connection at a request of 100 MiB (`socket.request.max.bytes`), and so would be
# asked again and again; smaller messages it refuses one by one, by the topic's own limit.
_MAX_REQUEST_BYTES = 64 * 2**20

_CLOSE_S = 2.0

_SETTINGS = {
    "client_id": "embedstream-publish",
    "max_request_size": _MAX_REQUEST_BYTES,
    # A message of 2,048 floats has 23 KB. A batch that the broker finds too large is split.
    "batch_size": 256 * 2**10,
    # An outage shows after this time, and not after two minutes.
    "delivery_timeout_ms": 30_000,
    "request_timeout_ms": 20_000,
    "max_block_ms": 20_000,
}


class PublishFailed(EmbedstreamError):
    """Outcomes were not published; it can be repeated."""


class MessageSink(Protocol):
    """Where messages are sent; see `Sender`."""

    skipped: list[tuple[str, int]]

    @property
    def is_full(self) -> bool:
        """Whether so much waits for acknowledgements that `flush` has to be called."""
        ...

    def send(self, message: Published) -> None:
        """Send a message without waiting for its acknowledgement."""

    def flush(self) -> None:
        """Wait until all messages that were sent are acknowledged, or skipped."""


class Sender:
    """Sends messages to a topic; `flush` waits for the acknowledgements of all of them.

    Messages of one key keep their order. `skipped` are the keys of messages that are larger than
    the topic or the broker allows, with their bytes.
    """

    def __init__(self, topic: str, bootstrap_servers: str, settings: Mapping[str, Any]) -> None:
        """Connect.

        Raises:
            SetupError: no broker answers, the topic does not exist, or a setting is wrong.
        """
        read_end_offsets(bootstrap_servers, topic, client_settings=settings)
        self._topic = topic
        self._producer = open_producer(bootstrap_servers, {**_SETTINGS, **settings})
        self._queued = self._queued_bytes = 0
        self._failures: list[Exception] = []
        self.skipped: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What is not acknowledged is sent again by the next one. Without a moment for its thread,
        # the producer leaves sockets open.
        self._producer.close(timeout=_CLOSE_S)

    @property
    def is_full(self) -> bool:
        """Whether so much waits for acknowledgements that `flush` has to be called."""
        return self._queued >= _MAX_QUEUED or self._queued_bytes >= MAX_QUEUED_BYTES

    def send(self, message: Published) -> None:
        """Send a message without waiting for its acknowledgement.

        Raises:
            PublishFailed: Kafka cannot be reached, or refuses it for another reason than its size.
        """
        from kafka.errors import KafkaError

        # The callback must not keep the value in memory.
        key, size = message.key, len(message.value or b"")
        try:
            future = self._producer.send(
                self._topic, key=key.encode(), value=message.value, headers=list(message.headers)
            )
        except KafkaError as error:
            self._record(key, size, error)
        else:
            future.add_errback(lambda error: self._record(key, size, error))
            self._queued += 1
            self._queued_bytes += size
        self._raise_failure()

    def flush(self) -> None:
        """Wait until all messages that were sent are acknowledged, or skipped.

        Raises:
            PublishFailed: some are not.
        """
        from kafka.errors import KafkaError

        try:
            self._producer.flush()
        except KafkaError as error:
            self._failures.append(error)
        self._raise_failure()
        self._queued = self._queued_bytes = 0

    def _record(self, key: str, size: int, error: Exception) -> None:
        from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

        if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
            self.skipped.append((key, size))
        else:
            self._failures.append(error)

    def _raise_failure(self) -> None:
        if self._failures:
            error = self._failures[0]
            # The text names batches and seconds; with the type alone, an outage is logged once.
            _LOG.info("topic '%s': %s", self._topic, error)
            raise PublishFailed(
                f"topic '{self._topic}' does not take the outcomes ({type(error).__name__})"
            )
