"""A Kafka message becomes an item: raw image bytes, or JSON with a reference or base64 data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.messages import inline_data
from embedstream_core.records import Item
from embedstream_core.settings import MessageFormat

__all__ = ["Message", "parse_message"]

_JSON_WHITESPACE = b" \t\r\n"
_UTF_8_MARK = b"\xef\xbb\xbf"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_JSON_TYPES: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    type(None): "null",
}

# A zero, then the schema's id in four bytes, then the value in JSON, Avro or Protobuf.
_CONFLUENT_BYTES = 5
# Formats that begin with a zero too: ICO and CUR, TGA, the boxes of ISO media (AVIF, HEIC, MP4),
# of JPEG 2000 and JPEG XL, and JSON in UTF-16.
_OTHER_ZEROS = re.compile(
    rb"\x00\x00[\x01\x02]\x00"
    rb"|\x00[\x00\x01][\x01-\x03\x09-\x0b]\x00\x00"
    rb"|\x00...(ftyp|moov|mdat|free|wide|jP  |JXL )"
    rb"|\x00[{ \t\r\n]\x00",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One Kafka message. `position` is `topic-partition-offset`, its identity of last resort."""

    value: bytes
    position: str
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def parse_message(message: Message, *, message_format: MessageFormat, id_header: str) -> Item:
    """Read one message as an item.

    The image id is the JSON field `id`, else the header `id_header`, else the key, else the
    position. A header or key that is no text becomes `0x` and its bytes in hexadecimal digits, so
    that two of them never become one id. Other headers and other JSON fields become attributes; a
    JSON field wins over a header of the same name. A header that is not UTF-8 is an attribute with
    replacement characters.

    `auto` takes a value whose first character is `{` for JSON: no image format starts so. JSON
    behind the five bytes of Confluent's wire format is read too.

    Raises:
        ItemError: the value is not what its format asks for.
    """
    headers = {name: value for name, value in message.headers if value is not None}
    header_id = headers.pop(id_header, None)
    image_id = next((_id_text(one) for one in (header_id, message.key) if one), message.position)
    attributes = {name: value.decode("utf-8", "replace") for name, value in headers.items()}
    value = message.value
    if message_format != "image":
        value = _without_schema_id(value)
        if message_format == "json" or _looks_like_json(value):
            return _item_from_json(_json_object(value), image_id=image_id, headers=attributes)
    return Item(image_id=image_id, content=value, attributes=attributes)


def _id_text(value: bytes) -> str:
    """Text as it is, anything else (a number of eight bytes, Avro) without loss."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    return f"0x{value.hex()}" if _CONTROL.search(text) else text


def _without_schema_id(value: bytes) -> bytes:
    """Strip Confluent's five bytes from JSON; refuse what else looks like its wire format."""
    if not value.startswith(b"\0") or len(value) <= _CONFLUENT_BYTES:
        return value
    schema_id = int.from_bytes(value[1:_CONFLUENT_BYTES], "big", signed=True)
    if _starts_like_json(value[_CONFLUENT_BYTES:], b"{"):
        return value[_CONFLUENT_BYTES:]
    # Ids count from 1.
    if schema_id < 1 or _OTHER_ZEROS.match(value):
        return value
    raise _malformed(
        f"the value looks like Confluent's schema-registry wire format with schema id {schema_id}, "
        "and what follows is no JSON object (Avro or Protobuf?): produce plain JSON or the image's "
        "bytes. If these are the image's bytes, set message.format to image"
    )


def _looks_like_json(value: bytes) -> bool:
    """Whether it is meant as JSON. Of an array or a string only the whole can tell."""
    if _starts_like_json(value, b"{"):
        return True
    if not _starts_like_json(value, (b"[", b'"')):
        return False
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


def _starts_like_json(value: bytes, start: bytes | tuple[bytes, ...]) -> bool:
    return value.removeprefix(_UTF_8_MARK).lstrip(_JSON_WHITESPACE).startswith(start)


def _json_object(value: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"the value is not JSON in UTF-8: {error}") from None
    if isinstance(fields, dict):
        return fields
    found = _json_type(fields)
    if isinstance(fields, str) and _starts_like_json(fields.encode("utf-8", "replace"), b"{"):
        found += " that holds an object, so it was encoded twice"
    raise _malformed(f"the value is JSON but {found}, not an object with 'uri' or 'data'")


def _json_type(value: object) -> str:
    return _JSON_TYPES.get(type(value), "a number")


def _item_from_json(fields: dict[str, Any], *, image_id: str, headers: Mapping[str, str]) -> Item:
    envelope = _envelope(fields)
    json_id, uri, data = (fields.pop(name, None) for name in ("id", "uri", "data"))
    # Producers with a fixed set of fields leave one of them empty.
    uri, data = (None if value == "" else value for value in (uri, data))
    if (uri is None) == (data is None) or (envelope and not isinstance(uri or data, str)):
        raise ItemError(
            Code.MESSAGE_INCOMPLETE,
            Stage.MESSAGE,
            envelope or "a JSON message needs exactly one of the fields 'uri' and 'data'",
        )
    name, text = ("data", _string("data", data)) if uri is None else ("uri", _string("uri", uri))
    is_inline = name == "data" or inline_data.is_data_uri(text)
    return Item(
        image_id=image_id if json_id in (None, "") else _attribute(json_id),
        uri=None if is_inline else text,
        content=_content(name, text) if is_inline else None,
        attributes={
            **headers,
            **{_unicode(name): _attribute(value) for name, value in fields.items()},
        },
    )


def _envelope(fields: Mapping[str, Any]) -> str | None:
    """Return what to do about a message that holds the fields one level deeper."""
    payload = fields.get("payload")
    is_connect = fields.keys() == {"schema", "payload"}
    event = payload if is_connect and isinstance(payload, dict) else fields
    advice = []
    if is_connect:
        advice.append("a Kafka Connect envelope: set value.converter.schemas.enable=false")
    if "op" in event and ("after" in event or "before" in event):
        advice.append("a Debezium change event: add the transform ExtractNewRecordState")
    if "specversion" in event:
        advice.append("a CloudEvent in structured mode: send it in binary mode")
    if not advice:
        return None
    return (
        f"this looks like {' and '.join(advice)}; "
        "the field 'uri' or 'data' must be at the top level of the message"
    )


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _malformed(f"the field '{name}' is {_json_type(value)}, not a string")
    if _unicode(value) != value:
        raise _malformed(f"the field '{name}' holds half of a surrogate pair")
    return value


def _content(name: str, text: str) -> bytes:
    try:
        return inline_data.decode(text)
    except ValueError as error:
        raise _malformed(f"the field '{name}' is not base64: {error}") from None


def _attribute(value: object) -> str:
    if isinstance(value, str):
        return _unicode(value)
    try:
        return _unicode(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        raise _malformed("the value is nested too deeply") from None


def _unicode(text: str) -> str:
    # A lone surrogate is valid in JSON's escapes but not in UTF-8, so Arrow would refuse the row.
    return text.encode("utf-8", "replace").decode("utf-8")


def _malformed(message: str) -> ItemError:
    return ItemError(Code.MESSAGE_MALFORMED, Stage.MESSAGE, message)
