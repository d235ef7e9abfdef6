"""The key of a message as an id."""

from __future__ import annotations

import base64
import re
from typing import Final
from uuid import UUID

from embedstream_core.settings import KeyFormat

__all__ = ["write_id", "write_key"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UUID_TEXT = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UUID_BYTES = 16
# Kafka's LongSerializer, IntegerSerializer and ShortSerializer: signed, the first byte highest.
_INTEGER_BYTES: Final[dict[KeyFormat, int]] = {"int64": 8, "int32": 4, "int16": 2}


def write_id(raw_id: bytes) -> str:
    """Return bytes as a text; `0x` and hexadecimal digits if they are not UTF-8 without controls.

    So a number of eight bytes, or Avro, keeps its bytes.
    """
    text = _decode(raw_id)
    return _write_hex(raw_id) if text is None or _CONTROL.search(text) else text


def write_key(key: bytes, key_format: KeyFormat) -> str:
    """Return a key as an id, in a way that gives different keys different ids.

    A key that does not have the format becomes `0x` and its bytes in hexadecimal digits, which no
    integer and no UUID looks like: the message is embedded all the same, and a tombstone with such
    a key deletes. Only a text can look like it, in `auto` and `utf8`.
    """
    if key_format == "hex":
        return key.hex()
    if key_format == "base64":
        return base64.b64encode(key).decode("ascii")
    if key_format == "utf8":
        text = _decode(key)
        # PostgreSQL has no text with a NUL.
        return _write_hex(key) if text is None or "\0" in text else text
    if key_format == "uuid":
        # Kafka's UUIDSerializer writes the text.
        if _UUID_TEXT.fullmatch(key):
            return key.decode("ascii").lower()
        return str(UUID(bytes=key)) if len(key) == _UUID_BYTES else _write_hex(key)
    if size := _INTEGER_BYTES.get(key_format):
        is_integer = len(key) == size
        return str(int.from_bytes(key, "big", signed=True)) if is_integer else _write_hex(key)
    return write_id(key)


def _decode(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _write_hex(raw: bytes) -> str:
    return f"0x{raw.hex()}"
