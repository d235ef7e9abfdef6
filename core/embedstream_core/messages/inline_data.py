"""Bytes within a text: base64 in the forms that producers send, and data URIs."""

from __future__ import annotations

import binascii
import json
import re
from urllib.parse import unquote, unquote_to_bytes

__all__ = ["decode_inline_data", "is_data_uri"]

# The media type is ignored: the decoder identifies the format by the bytes.
_SCHEME = re.compile(r"\s*data:", re.IGNORECASE)
_DATA_URI = re.compile(rf"{_SCHEME.pattern}([^,]{{0,1000}}),", re.IGNORECASE)
_BASE64 = re.compile(r";\s*base64\s*(;|$)", re.IGNORECASE)
_ASCII_SPACES = b" \t\r\n\v\f"
# Web pages and documents have spaces of other kinds, and some of no width, which \s leaves out.
_SPACES = r"\s\u200b-\u200d\u2060\ufeff"
_NO_DATA = re.compile(f"[{_SPACES}]+")
_FOREIGN = re.compile(f"[^A-Za-z0-9+/_={_SPACES}-]")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
# Base64 too has no other characters than these, but not so many of one case in a row: for bytes at
# random, the chance of 64 is 2**-128. Data that repeat have digits alone or letters alone.
_HEX = re.compile(
    r"\s*(0x|\\+x)?(?=[0-9]*+[A-Fa-f])(?=[A-Fa-f]*+[0-9])([0-9a-f]{64,}|[0-9A-F]{64,})\s*"
)


def is_data_uri(text: str) -> bool:
    """Return whether `text` begins like a data URI."""
    return _SCHEME.match(text) is not None


def decode_inline_data(text: str) -> bytes:
    r"""Decode base64, or return the bytes of a data URI.

    Base64 may have line breaks and spaces (MIME), the URL-safe alphabet, and too little padding; if
    it has padding within, each of its lines was encoded by itself. Escapes of JSON, such as `\n`
    and `\/`, are those of a text that was escaped twice.

    Raises:
        ValueError: it is neither; the message says what is wrong, and where if that is known.
    """
    if is_data_uri(text):
        head = _DATA_URI.match(text)
        if head is None:
            raise ValueError("a data URI needs a comma between its media type and its data")
        text = text[head.end() :]
        if _BASE64.search(unquote(head[1])) is None:
            return unquote_to_bytes(text)
        if "%" in text:
            text = unquote_to_bytes(text).decode("latin-1")
    if _HEX.fullmatch(text):
        raise ValueError(
            "it is in hexadecimal digits; send base64, which Debezium writes with "
            "binary.handling.mode=base64"
        )
    if "\\" in text:
        text = _unescape(text)
    try:
        # 30 MB in lines take 0.3 s, as long as b64decode alone takes for them in one line.
        ascii_text = text if text.isascii() else _NO_DATA.sub("\n", text)
        coded = ascii_text.encode("ascii").translate(None, _ASCII_SPACES)
        if b"=" in coded.rstrip(b"="):
            return b"".join(_decode(line) for line in ascii_text.encode("ascii").split())
        return _decode(coded)
    except (UnicodeEncodeError, binascii.Error):
        if found := _FOREIGN.search(text):
            raise ValueError(f"character {found[0]!r} at position {found.start()}") from None
        raise


def _unescape(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _decode(coded: bytes) -> bytes:
    """Decode base64 without spaces, of either alphabet."""
    if b"-" in coded or b"_" in coded:
        if b"+" in coded or b"/" in coded:
            raise ValueError("it mixes the alphabets with '+' and '/' and with '-' and '_'")
        coded = coded.translate(_URL_SAFE)
    digits = coded.rstrip(b"=")
    missing = -len(digits) % 4
    if len(coded) - len(digits) < missing:
        coded = digits + b"=" * missing
    return binascii.a2b_base64(coded, strict_mode=True)
