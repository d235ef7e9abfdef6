"""Read a Kafka message as an item: the content's own bytes, or JSON; or as a deletion.

The JSON holds a reference, data in base64, or a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.messages import inline_data
from embedstream_core.records import Deletion, Item
from embedstream_core.settings import MessageFormat, ModalityName

__all__ = ["Message", "parse_message"]

_CONTENT_FIELDS = ("uri", "data", "text")
_JSON_WHITESPACE = b" \t\r\n"
_UTF_8_MARK = b"\xef\xbb\xbf"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_Malformed = partial(ItemError, Code.MESSAGE_MALFORMED, Stage.MESSAGE)
_ADVICE_ON_PLAIN_TEXT = (
    "; a plain text that begins with '{' needs message.format bytes, or the JSON field 'text'"
)
_JSON_TYPES: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    type(None): "null",
}

# Confluent's wire format is a zero, the schema's id in four bytes, then JSON, Avro or Protobuf.
_CONFLUENT_BYTES = 5
# Formats that begin with a zero: ICO and CUR, TGA, the boxes of ISO media (AVIF, HEIC, MP4),
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
    """One Kafka message. `position` is `topic-partition-offset`, its identity of last resort.

    `value` is None for a tombstone, by which Kafka's compacted topics delete a key.
    """

    value: bytes | None
    position: str
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def parse_message(
    message: Message,
    *,
    message_format: MessageFormat,
    id_header: str,
    accepts: Container[ModalityName],
) -> Item | Deletion:
    """Read one message as an item, or as a deletion if it has no value.

    The image id is the JSON field `id`, else the header `id_header`, else the key, else the
    position. A header or key that is not text becomes `0x` and its bytes in hexadecimal digits:
    different ones never become the same id. Other headers and JSON fields become attributes; a JSON
    field wins over a header of the same name. A header that is not UTF-8 is an attribute with
    replacement characters.

    `auto` reads a value as JSON if its first character is `{`, which no image and no audio file
    begins with. JSON after the five bytes of Confluent's wire format is read too. A value that is a
    JSON string or array is a plain text if the encoders' modalities, `accepts`, include texts, and
    malformed otherwise. So is the JSON field `text` their text; next to an image it is otherwise
    an attribute, such as its caption.

    Raises:
        ItemError: the value does not have the required format.
    """
    headers = {name: value for name, value in message.headers if value is not None}
    raw_id = headers.pop(id_header, None) or message.key
    image_id = _read_id(raw_id) if raw_id else message.position
    attributes = {name: value.decode("utf-8", "replace") for name, value in headers.items()}
    value = message.value
    if value is None:
        return Deletion(image_id, attributes)
    if message_format != "bytes":
        value = _strip_schema_id(value)
        is_json = message_format == "json" or _starts_like_json(value, b"{")
        if is_json or _starts_like_json(value, (b"[", b'"')):
            try:
                fields = json.loads(value)
            except (ValueError, RecursionError) as error:
                # An array or a string is JSON only if all of it is.
                if is_json:
                    texts = message_format == "auto" and "text" in accepts
                    advice = _ADVICE_ON_PLAIN_TEXT if texts else ""
                    raise _Malformed(f"the value is not JSON in UTF-8: {error}{advice}") from None
            else:
                if is_json or "text" not in accepts or _is_encoded_twice(fields):
                    return _build_item(
                        fields,
                        image_id=image_id,
                        headers=attributes,
                        accepts=accepts,
                        position=message.position,
                    )
    return Item(image_id=image_id, content=value, attributes=attributes, position=message.position)


def _read_id(raw_id: bytes) -> str:
    try:
        image_id = raw_id.decode("utf-8")
    except UnicodeDecodeError:
        image_id = "\0"
    # A number of eight bytes, or Avro, keeps its bytes.
    return f"0x{raw_id.hex()}" if _CONTROL.search(image_id) else image_id


def _strip_schema_id(value: bytes) -> bytes:
    """Strip Confluent's five bytes from JSON; refuse other values in its wire format."""
    if not value.startswith(b"\0") or len(value) <= _CONFLUENT_BYTES:
        return value
    rest = value[_CONFLUENT_BYTES:]
    if _starts_like_json(rest, b"{"):
        return rest
    schema_id = int.from_bytes(value[1:_CONFLUENT_BYTES], "big", signed=True)
    # Ids count from 1.
    if schema_id < 1 or _OTHER_ZEROS.match(value):
        return value
    raise _Malformed(
        f"the value looks like Confluent's schema-registry wire format with schema id {schema_id}, "
        "but without a JSON object after it (Avro or Protobuf?): produce plain JSON or the "
        "content's own bytes. If these are the content's own bytes, set message.format to bytes"
    )


def _starts_like_json(value: bytes, start: bytes | tuple[bytes, ...]) -> bool:
    return value.removeprefix(_UTF_8_MARK).lstrip(_JSON_WHITESPACE).startswith(start)


def _describe_type(value: object) -> str:
    return _JSON_TYPES.get(type(value), "a number")


def _is_encoded_twice(fields: object) -> bool:
    """Return whether the value is a JSON string that holds an object."""
    if not isinstance(fields, str) or not _starts_like_json(
        fields.encode("utf-8", "replace"), b"{"
    ):
        return False
    try:
        return isinstance(json.loads(fields), dict)
    except (ValueError, RecursionError):
        return False


def _build_item(
    fields: Any,
    *,
    image_id: str,
    headers: Mapping[str, str],
    accepts: Container[ModalityName],
    position: str,
) -> Item:
    if not isinstance(fields, dict):
        found = _describe_type(fields)
        if _is_encoded_twice(fields):
            found += " that holds an object, so it was encoded twice"
        raise _Malformed(
            f"the value is JSON but {found}, not an object with 'uri', 'data' or 'text'"
        )
    advice = _advise_on_envelope(fields)
    json_id = fields.pop("id", None)
    texts = {name: fields.pop(name, None) for name in _CONTENT_FIELDS}
    # Producers with a fixed set of fields leave the others empty.
    given = {name: text for name, text in texts.items() if text not in (None, "")}
    if "text" in accepts and not given and texts["text"] == "":
        given = {"text": ""}
    elif "text" not in accepts and len(given) > 1 and "text" in given:
        # The caption of an image.
        fields["text"] = given.pop("text")
    if len(given) != 1 or (advice and not isinstance(next(iter(given.values())), str)):
        rule = "a JSON message needs exactly one of the fields 'uri', 'data' and 'text', not empty"
        raise ItemError(Code.MESSAGE_INCOMPLETE, Stage.MESSAGE, advice or rule)
    ((name, text),) = given.items()
    if not isinstance(text, str):
        raise _Malformed(f"the field '{name}' is {_describe_type(text)}, not a string")
    if _replace_surrogates(text) != text:
        raise _Malformed(f"the field '{name}' holds half of a surrogate pair")
    content = text.encode() if name == "text" else None
    if name == "data" or (name == "uri" and inline_data.is_data_uri(text)):
        try:
            content = inline_data.decode_inline_data(text)
        except ValueError as error:
            raise _Malformed(f"the field '{name}' is not base64: {error}") from None
    attributes = {_replace_surrogates(name): _write_text(one) for name, one in fields.items()}
    return Item(
        image_id=image_id if json_id in (None, "") else _write_text(json_id),
        uri=text if content is None else None,
        content=content,
        attributes={**headers, **attributes},
        media_type="text/plain" if name == "text" else None,
        position=position,
    )


def _advise_on_envelope(fields: Mapping[str, Any]) -> str | None:
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
        "the field 'uri', 'data' or 'text' must be at the top level of the message"
    )


def _write_text(value: object) -> str:
    """Return a string as it is, any other value as its JSON."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise _Malformed("the value is nested too deeply") from None
    return _replace_surrogates(text)


def _replace_surrogates(text: str) -> str:
    # A lone surrogate is valid in JSON's escapes but not in UTF-8, so Arrow would refuse the row.
    return text.encode("utf-8", "replace").decode("utf-8")
