"""Read a Kafka message as an item: the content's own bytes, or a document; or as a deletion.

The document is JSON, or what a schema registry's decoder returns. It holds a reference, data in
base64, or a text.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.messages import wire_format
from embedstream_core.messages.documents import Outside, build_item, is_encoded_twice
from embedstream_core.messages.fields import FieldExpressions
from embedstream_core.messages.keys import write_id, write_key
from embedstream_core.records import Deletion, Item
from embedstream_core.settings import KeyFormat, MessageFormat, ModalityName

__all__ = ["Message", "MessageReader", "ValueDecoder"]

_JSON_WHITESPACE = b" \t\r\n"
_UTF_8_MARK = b"\xef\xbb\xbf"
_Malformed = partial(ItemError, Code.MESSAGE_MALFORMED, Stage.MESSAGE)
_ADVICE_ON_PLAIN_TEXT = (
    "; a plain text that begins with '{' needs message.format bytes, or the JSON field 'text'"
)

_ADVICE_ON_OWN_BYTES = "If these are the content's own bytes, set message.format to bytes"


@dataclass(frozen=True, slots=True)
class Message:
    """One Kafka message. `position` is `topic-partition-offset`, its identity of last resort.

    `value` is None for a tombstone, by which Kafka's compacted topics delete a key.
    """

    value: bytes | None
    position: str
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


class ValueDecoder(Protocol):
    """Decodes values in Confluent's wire format; can be pickled, for the workers."""

    def decode(self, value: bytes, *, schema_header: bytes | None = None) -> Any:
        """Return the document of a whole value: a dict, list, str, …; bytes stay bytes.

        `schema_header` is the header that names the schema, if there is one; otherwise the value
        begins with its name.

        Raises:
            ItemError: this value cannot be decoded.
            SystemicError: the schema registry does not answer.
        """


@dataclass(frozen=True)
class MessageReader:
    """How a stream's messages become items; it can be pickled, for the workers.

    format: `auto` reads a value as JSON if its first character is `{`, which no image and no audio
    file begins with. JSON after the five bytes of Confluent's wire format is read too.
    id_header: the header that carries the id.
    key: how a key becomes an id if there is neither the field `id` nor that header.
    fields: where a document has its fields; None for those at its top level.
    decoder: what decodes values in Confluent's wire format, unless the format is `bytes`.
    """

    format: MessageFormat = "auto"
    id_header: str = "image-id"
    key: KeyFormat = "auto"
    fields: FieldExpressions | None = None
    decoder: ValueDecoder | None = None

    def read(self, message: Message, *, accepts: Container[ModalityName]) -> Item | Deletion:
        """Read one message as an item, or as a deletion if it has no value or its field says so.

        The image id is the field `id`, else the header, else the key, else the position. Other
        headers become attributes, as do the document's other fields, or those that
        `fields.attributes` names; a field wins over a header of the same name. A header that is not
        UTF-8 is an attribute with replacement characters, but as the id it is `0x` and its bytes.

        A value that is a JSON string or array is a plain text if the encoders' modalities,
        `accepts`, include texts; otherwise it is a document. So is the field `text` their text;
        next to an image it is otherwise an attribute, such as its caption.

        Raises:
            ItemError: the value does not have the required format.
            SystemicError: the schema registry does not answer.
        """
        headers = {name: value for name, value in message.headers if value is not None}
        schema_header = headers.pop(wire_format.SCHEMA_HEADER, None)
        if raw_id := headers.pop(self.id_header, None):
            image_id = write_id(raw_id)
        else:
            image_id = write_key(message.key, self.key) if message.key else message.position
        attributes = {name: value.decode("utf-8", "replace") for name, value in headers.items()}
        if message.value is None:
            return Deletion(image_id, attributes)
        document = self._read_document(message.value, schema_header, accepts)
        if isinstance(document, bytes):
            return Item(image_id, document, attributes=attributes, position=message.position)
        return build_item(
            document,
            Outside(image_id, attributes, message.position, message.key is not None),
            expressions=self.fields,
            accepts=accepts,
        )

    def _read_document(
        self, value: bytes, schema_header: bytes | None, accepts: Container[ModalityName]
    ) -> Any:
        """Return the document of a value, or the bytes of content that is no document."""
        if self.format == "bytes":
            return value
        if self.decoder is not None and (schema_header or self._is_encoded(value)):
            document = self.decoder.decode(value, schema_header=schema_header)
            is_text = isinstance(document, str) and self.fields is None and "text" in accepts
            return {"text": document} if is_text else document
        value = _strip_schema_id(value)
        is_json = self.format == "json" or _starts_like_json(value, b"{")
        if not is_json and schema_header:
            raise _Malformed(
                f"the header {wire_format.SCHEMA_HEADER} names the value's schema: configure "
                "message.registry, or set message.format to bytes if these are the content's own "
                "bytes"
            )
        if not is_json and not _starts_like_json(value, (b"[", b'"')):
            return value
        try:
            document = json.loads(value)
        except (ValueError, RecursionError) as error:
            # An array or a string is JSON only if all of it is.
            if not is_json:
                return value
            texts = self.format == "auto" and "text" in accepts
            advice = _ADVICE_ON_PLAIN_TEXT if texts else ""
            raise _Malformed(f"the value is not JSON in UTF-8: {error}{advice}") from None
        is_text = not is_json and "text" in accepts and not is_encoded_twice(document)
        return value if is_text else document

    def _is_encoded(self, value: bytes) -> bool:
        # A topic with a registry has few images that begin with a zero; only boxes are sure.
        if self.format == "auto" and wire_format.has_boxes(value):
            return False
        return wire_format.find_schema_id(value) is not None


def _strip_schema_id(value: bytes) -> bytes:
    """Strip Confluent's five bytes from JSON; refuse other values in a wire format."""
    rest = value[wire_format.PREFIX_BYTES :]
    if value.startswith(b"\0") and _starts_like_json(rest, b"{"):
        return rest
    if frame := wire_format.find_foreign_frame(value):
        raise _Malformed(
            f"the value looks like {frame}, which is not read: produce plain JSON, the content's "
            f"own bytes or Confluent's wire format. {_ADVICE_ON_OWN_BYTES}"
        )
    schema_id = wire_format.find_schema_id(value)
    if schema_id is None or wire_format.looks_like_media(value):
        return value
    raise _Malformed(
        f"the value looks like Confluent's schema-registry wire format with schema id {schema_id}, "
        "but without a JSON object after it (Avro or Protobuf?): configure message.registry, or "
        f"produce plain JSON or the content's own bytes. {_ADVICE_ON_OWN_BYTES}"
    )


def _starts_like_json(value: bytes, start: bytes | tuple[bytes, ...]) -> bool:
    return value.removeprefix(_UTF_8_MARK).lstrip(_JSON_WHITESPACE).startswith(start)
