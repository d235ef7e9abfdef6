"""Confluent's wire format: which schema wrote a value, and the value's data.

https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from embedstream_core.messages.registry.cursor import Cursor
from embedstream_core.messages.wire_format import PREFIX_BYTES

__all__ = ["Frame", "read_frame", "read_message_indexes"]

_GUID_BYTES = 17
_MAX_ID = 2**31 - 1
# Deeper than anybody nests messages.
_MAX_INDEXES = 64


@dataclass(frozen=True, slots=True)
class Frame:
    """The data of a value, and its schema's path below `/schemas/`: `ids/7`, or `guids/UUID`."""

    schema: str
    data: bytes


def read_frame(value: bytes, *, schema_header: bytes | None = None) -> Frame:
    """Read which schema wrote a value: a zero and an id in four bytes, or a one and a UUID.

    Producers write it before the data, or into a header of the message, `__value_schema_id`.

    Raises:
        ValueError: there is neither.
    """
    named = value if schema_header is None else schema_header
    if named[:1] == b"\0" and len(named) >= PREFIX_BYTES:
        schema_id = int.from_bytes(named[1:PREFIX_BYTES], "big")
        if not 0 < schema_id <= _MAX_ID:
            raise ValueError(f"{schema_id} is no schema's id")
        schema, length = f"ids/{schema_id}", PREFIX_BYTES
    elif named[:1] == b"\1" and len(named) >= _GUID_BYTES:
        schema, length = f"guids/{UUID(bytes=named[1:_GUID_BYTES])}", _GUID_BYTES
    else:
        raise ValueError("it does not begin with a zero and the id of a schema in four bytes")
    # Of Protobuf, the header has the message's indexes too.
    return Frame(schema, named[length:] if schema_header is None else named[length:] + value)


def read_message_indexes(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return the path of a Protobuf message in its file, and the message's bytes.

    The path has the index of a message in the file, then of one that is nested in it, and so on. A
    single zero stands for the file's first message.

    Raises:
        ValueError: the path is not well formed.
    """
    cursor = Cursor(data)
    count = cursor.take_long()
    if not 0 <= count <= _MAX_INDEXES:
        raise ValueError(f"it has {count} message indexes (written with use.deprecated.format?)")
    indexes = tuple(cursor.take_long() for _ in range(count)) or (0,)
    return indexes, data[cursor.position :]
