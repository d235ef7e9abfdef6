"""A Kafka message becomes an item: raw image bytes, or JSON with a reference or base64 data."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.records import Item

__all__ = ["Message", "MessageFormat", "parse_message"]

MessageFormat = Literal["auto", "image", "json"]

_JSON_WHITESPACE = b" \t\r\n"
_UTF_8_MARK = b"\xef\xbb\xbf"


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
    position. Other headers and other JSON fields become attributes; a JSON field wins over a
    header of the same name.

    `auto` takes a value whose first character is `{` for JSON: no image format starts so.

    Raises:
        ItemError: the value is not what its format asks for.
    """
    headers = {name: _text(value) for name, value in message.headers if value is not None}
    header_id = headers.pop(id_header, None)
    image_id = header_id or (_text(message.key) if message.key else "") or message.position
    if message_format == "image" or (
        message_format == "auto" and not _looks_like_json(message.value)
    ):
        return Item(image_id=image_id, content=message.value, attributes=headers)
    return _item_from_json(_json_object(message.value), image_id=image_id, headers=headers)


def _looks_like_json(value: bytes) -> bool:
    return value.removeprefix(_UTF_8_MARK).lstrip(_JSON_WHITESPACE).startswith(b"{")


def _json_object(value: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"the value is not JSON in UTF-8: {error}") from None
    if not isinstance(fields, dict):
        raise _malformed(f"the value is JSON but a {type(fields).__name__}, not an object")
    return fields


def _item_from_json(fields: dict[str, Any], *, image_id: str, headers: Mapping[str, str]) -> Item:
    json_id, uri, data = (fields.pop(name, None) for name in ("id", "uri", "data"))
    if (uri is None) == (data is None):
        raise ItemError(
            Code.MESSAGE_INCOMPLETE,
            Stage.MESSAGE,
            "a JSON message needs exactly one of the fields 'uri' and 'data'",
        )
    return Item(
        image_id=image_id if json_id in (None, "") else _attribute(json_id),
        uri=None if uri is None else _string("uri", uri),
        content=None if data is None else _base64(_string("data", data)),
        attributes={
            **headers,
            **{_unicode(name): _attribute(value) for name, value in fields.items()},
        },
    )


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _malformed(f"the field '{name}' is a {type(value).__name__}, not a string")
    if _unicode(value) != value:
        raise _malformed(f"the field '{name}' holds half of a surrogate pair")
    return value


def _base64(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(f"the field 'data' is not base64: {error}") from None


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


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _malformed(message: str) -> ItemError:
    return ItemError(Code.MESSAGE_MALFORMED, Stage.MESSAGE, message)
