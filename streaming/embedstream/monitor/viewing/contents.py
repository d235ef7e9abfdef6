"""Read the content of a row: by its reference, within the stream's policy, or from Kafka."""

from __future__ import annotations

from dataclasses import dataclass, replace

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.kafka.client_settings import convert_options
from embedstream.monitor.viewing.rows import Row
from embedstream.search.contents import KafkaReader
from embedstream_core.errors import ItemError, SetupError, SystemicError
from embedstream_core.fetch.fetcher import Fetcher, open_fetcher
from embedstream_core.media.detect import find_modality
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.records import Item
from embedstream_core.redaction import REDACTED
from embedstream_core.settings import ModalityName

__all__ = ["Content", "Contents"]

# The page shows a note instead, sooner than the viewer's limit ends the whole process.
_FETCH_S = 5.0


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes; `media_type` is what the message declares, `trouble` why it is not an item."""

    content: bytes
    media_type: str | None = None
    trouble: str = ""


class Contents:
    """Reads the contents of rows; one thread at a time may use it."""

    def __init__(self, config: StreamConfig | BulkFilesConfig) -> None:
        self._config = config
        self._fetcher: Fetcher | None = None
        self._messages: KafkaReader | None = None

    def read(self, row: Row) -> Content:
        """Return the content of a row.

        Raises:
            SetupError: it may not be fetched, or is not there any more.
        """
        uri = row["uri"]
        if uri is not None and REDACTED not in uri:
            return Content(self._fetch(uri))
        message = self._read_message(row)
        # A deletion has no value, and then no content.
        if message.value is None:
            raise SetupError("the message has no value")
        item = self._parse(message, row)
        if isinstance(item, Content):
            return item
        if item.content is not None:
            return Content(item.content, item.media_type)
        # The table's reference lacks a secret that the message's has.
        return Content(self._fetch(item.uri or ""))

    def close(self) -> None:
        """Close the connections."""
        if self._fetcher is not None:
            self._fetcher.close()
        if self._messages is not None:
            self._messages.close()

    def _fetch(self, uri: str) -> bytes:
        try:
            if self._fetcher is None:
                decode = self._config.decode.settings
                largest = max(decode.get_max_bytes(one) for one in ("image", "text", "audio"))
                policy = self._config.references.build_policy(max_bytes=largest)
                timeout_s = min(policy.timeout_s, _FETCH_S)
                # What may be fetched is the stream's; how long is waited is not.
                self._fetcher = open_fetcher(
                    replace(policy, timeout_s=timeout_s, attempts=1, outage_after=None)
                )
            return self._fetcher.fetch(uri)
        except ItemError as error:
            raise SetupError(f"{error.code}: {error.message}") from None
        except SystemicError as error:
            raise SetupError(f"the reference cannot be fetched: {error}") from None

    def _read_message(self, row: Row) -> Message:
        if row["topic"] is None or not isinstance(self._config, StreamConfig):
            raise SetupError("the content was in a message, and no topic is configured here")
        if self._messages is None:
            kafka = self._config.kafka
            self._messages = KafkaReader(kafka.bootstrap_servers, convert_options(kafka.options))
        message = self._messages.read(row["topic"], row["partition"], row["offset"])
        if message is None:
            raise SetupError("Kafka no longer has the message")
        return message

    def _parse(self, message: Message, row: Row) -> Item | Content:
        """Return the message's item, or its bare value if it cannot be read as one."""
        if isinstance(self._config, StreamConfig):
            reader = self._config.message.build_reader()
        else:
            reader = MessageReader()
        kind = (row["media"] or {}).get("type") or ""
        accepts: list[ModalityName] = ["text"] if find_modality(kind) == "text" else []
        value = message.value or b""
        try:
            entry = reader.read(message, accepts=accepts)
        except ItemError as error:
            return Content(value, trouble=f"{error.code}: {error.message}")
        except SystemicError as error:
            raise SetupError(f"the message cannot be read: {error}") from None
        return entry if isinstance(entry, Item) else Content(value)
