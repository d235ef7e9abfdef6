"""Keys as ids: every format, keys that do not fit it, and that no two keys have one id."""

from __future__ import annotations

import base64
import uuid
from typing import get_args

import pytest
from confluent_kafka.serialization import IntegerSerializer
from hypothesis import given
from hypothesis import strategies as st

from embedstream_core.messages.keys import write_key
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.records import Deletion, Item
from embedstream_core.settings import KeyFormat

FORMATS: tuple[KeyFormat, ...] = get_args(KeyFormat)
ID = uuid.UUID("0fa1b2c3-0000-4000-8000-00000000000a")


@pytest.mark.parametrize(
    ("key_format", "key", "expected"),
    [
        ("auto", b"sku-1", "sku-1"),
        ("auto", b"a\tb", "0x610962"),
        ("auto", bytes(8), "0x0000000000000000"),
        ("utf8", "Käse\t7".encode(), "Käse\t7"),
        ("utf8", b"\xff\xfe", "0xfffe"),
        ("utf8", b"a\0", "0x6100"),
        ("hex", b"\0\xff", "00ff"),
        ("hex", b"ab", "6162"),
        ("base64", b"\xfb\xff", "+/8="),
        ("int64", (7).to_bytes(8, "big"), "7"),
        ("int64", (-2).to_bytes(8, "big", signed=True), "-2"),
        ("int64", (2**63 - 1).to_bytes(8, "big"), "9223372036854775807"),
        ("int64", b"sku-1", "0x736b752d31"),
        ("int32", IntegerSerializer()(-70_000, None), "-70000"),
        ("int32", bytes(8), "0x0000000000000000"),
        ("int16", b"\x01\x00", "256"),
        ("uuid", ID.bytes, str(ID)),
        ("uuid", str(ID).encode(), str(ID)),
        ("uuid", str(ID).upper().encode(), str(ID)),
        ("uuid", b"sixteen-letters!", str(uuid.UUID(bytes=b"sixteen-letters!"))),
        ("uuid", ID.hex.encode(), f"0x{ID.hex.encode().hex()}"),
    ],
)
def test_a_key_in_each_format(key_format: KeyFormat, key: bytes, expected: str) -> None:
    reader = MessageReader(key=key_format)

    item = reader.read(Message(b"content", "images-0-7", key), accepts=("image",))
    deletion = reader.read(Message(None, "images-0-7", key), accepts=("image",))

    assert item == Item(expected, b"content")
    assert deletion == Deletion(expected)


@pytest.mark.parametrize("key_format", FORMATS)
@pytest.mark.parametrize("key", [None, b""])
def test_no_key_is_the_position(key_format: KeyFormat, key: bytes | None) -> None:
    message = Message(b"content", "images-0-7", key)
    assert MessageReader(key=key_format).read(message, accepts=()).image_id == "images-0-7"


def test_the_format_is_that_of_keys_alone() -> None:
    reader = MessageReader(key="hex")
    by_header = Message(b"content", "images-0-7", b"k", [("image-id", b"header")])
    by_field = Message(b'{"id": "field", "uri": "u"}', "images-0-7", b"k")

    assert reader.read(by_header, accepts=()).image_id == "header"
    assert reader.read(by_field, accepts=()).image_id == "field"


def spell(number: int) -> list[bytes]:
    """Ways in which producers write a number as a key."""
    size = [number.to_bytes(size, "big", signed=True) for size in (2, 4, 8)]
    return [*size, str(number).encode(), number.to_bytes(16, "big", signed=True)]


@pytest.mark.parametrize("key_format", [one for one in FORMATS if one not in ("auto", "utf8")])
@given(st.sets(st.binary(min_size=1, max_size=20), min_size=2, max_size=8), st.integers(-999, 999))
def test_different_keys_have_different_ids(
    key_format: KeyFormat, some: set[bytes], number: int
) -> None:
    keys = some | set(spell(number))
    # A text of a UUID and its bytes are the same UUID.
    assert len({write_key(key, key_format) for key in keys}) == len(keys)


@pytest.mark.parametrize("key_format", ["auto", "utf8"])
@given(st.sets(st.binary(min_size=1, max_size=20), min_size=2, max_size=8))
def test_different_keys_have_different_ids_unless_a_text_looks_like_digits(
    key_format: KeyFormat, some: set[bytes]
) -> None:
    keys = {key for key in some if not key.startswith(b"0x")}
    assert len({write_key(key, key_format) for key in keys}) == len(keys)


@given(st.binary(min_size=1))
def test_keys_in_hexadecimal_and_base64_can_be_read_back(key: bytes) -> None:
    assert bytes.fromhex(write_key(key, "hex")) == key
    assert base64.b64decode(write_key(key, "base64"), validate=True) == key
