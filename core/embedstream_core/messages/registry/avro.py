"""Avro's binary encoding, read with the schema that wrote it.

https://avro.apache.org/docs/1.12.0/specification/

fastavro checks the schema and resolves its names, but does not read the values: 100,000 bytes of a
recursive record end its process with a segmentation fault, five bytes make a list of ten million
nulls, and it reads the index -1 as the last branch of a union. See decision 34.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from embedstream_core.extras import require_extra
from embedstream_core.messages.registry.cursor import Cursor
from embedstream_core.messages.registry.decimals import MAX_SCALE, write_decimal

__all__ = ["build_avro_reader"]

Read = Callable[[Cursor], Any]
Convert = Callable[[Any], Any]

# The root becomes the only field of a record, which adds no bytes: fastavro resolves the names of
# other schemas only within a record, and the root may be a union of them.
_ROOT = "embedstream__root"
_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL_EPOCH = _EPOCH.replace(tzinfo=None)
# A field of a record takes four levels of JSON. fastavro's compiled code has no bound of its own.
_MAX_SCHEMA_LEVELS = 200


def build_avro_reader(schema: str, references: Sequence[tuple[str, str]]) -> Callable[[bytes], Any]:
    """Return a function from the data of a value to a plain document.

    Records and maps become dicts, arrays lists, enums texts; of a union there is the value alone.
    Bytes and fixed stay bytes. Decimals become texts with all their digits, dates, times and
    timestamps texts in ISO 8601, with `Z` where they are points in time. Those that Python cannot
    express stay numbers, as do nanoseconds. The function raises ValueError or RecursionError for
    data that the schema did not write.

    `references` are the names and texts of the schemas that this one needs, each after those that
    it needs itself.

    Raises:
        ValueError: one of the schemas is not well formed.
        MissingExtra: fastavro is not installed.
    """
    with require_extra("registry", feature="a message in Avro"):
        from fastavro.schema import parse_schema

    named: dict[str, Any] = {}
    try:
        for _, text in references:
            parse_schema(_load(text), named)
        field = {"name": "root", "type": _load(schema)}
        parse_schema({"type": "record", "name": _ROOT, "fields": [field]}, named)
        root = named[_ROOT]["fields"][0]["type"]
        read = _Readers(named).build(root)
    except (ValueError, RecursionError, MemoryError):
        raise
    # What JSON that is not a schema raises depends on where it is read.
    except Exception as error:
        raise ValueError(f"it is not an Avro schema: {type(error).__name__}: {error}") from None
    is_bytes = root == "bytes" or root == {"type": "bytes"}
    return partial(_read_bytes if is_bytes else _read_whole, read)


def _load(text: str) -> Any:
    """Return a schema as JSON without its defaults: nothing is missing in what it wrote itself.

    fastavro would refuse defaults of a wrong type, which other libraries admit.
    """
    tree = json.loads(
        text, object_pairs_hook=lambda pairs: {key: one for key, one in pairs if key != "default"}
    )
    level = [tree]
    for _ in range(_MAX_SCHEMA_LEVELS):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return tree
    raise ValueError(f"it is nested in more than {_MAX_SCHEMA_LEVELS} levels")


def _read_whole(read: Read, data: bytes) -> Any:
    cursor = Cursor(data)
    document = read(cursor)
    if cursor.rest:
        raise ValueError(f"{cursor.rest} of {len(data)} bytes are left over")
    return document


def _read_bytes(read: Read, data: bytes) -> Any:
    """Read a value that is nothing but bytes.

    Confluent's Java serializer, and so Kafka Connect's AvroConverter, omits their length.
    """
    try:
        return _read_whole(read, data)
    except ValueError:
        return data


class _Readers:
    """Builds the function that reads a schema's values; once for each named schema."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._built: dict[str, Read] = {}

    def build(self, schema: Any) -> Read:
        if isinstance(schema, list):
            return partial(_read_union, [self.build(one) for one in schema])
        if isinstance(schema, str) and schema not in _PRIMITIVES:
            return self._find(schema)
        if isinstance(schema, str):
            schema = {"type": schema}
        kind = schema["type"]
        if kind in ("record", "error", "enum", "fixed"):
            return self._find(schema["name"])
        if kind == "array":
            return partial(_read_array, self.build(schema["items"]))
        if kind == "map":
            return partial(_read_map, self.build(schema["values"]))
        return _convert(_PRIMITIVES[kind], schema)

    def _find(self, name: str) -> Read:
        """Return the reader of a named schema, which may be under construction: it is recursive."""
        if name not in self._built:
            self._built[name] = lambda cursor: self._built[name](cursor)
            self._built[name] = self._build_named(self._named[name])
        return self._built[name]

    def _build_named(self, schema: Mapping[str, Any]) -> Read:
        if schema["type"] == "enum":
            return partial(_read_enum, _require_symbols(schema["symbols"]))
        if schema["type"] == "fixed":
            size = int(schema["size"])
            return _convert(lambda cursor: cursor.take(size), schema)
        # fastavro does not check the type of a field's name.
        fields = [
            (_require_text(field["name"]), self.build(field["type"])) for field in schema["fields"]
        ]
        return partial(_read_record, fields)


def _require_symbols(symbols: object) -> list[str]:
    # fastavro takes an object for the list of its names.
    if isinstance(symbols, list):
        return [_require_text(one) for one in symbols]
    raise TypeError("the symbols of an enum are not a list")


def _require_text(name: object) -> str:
    if isinstance(name, str):
        return name
    raise TypeError(f"the name {str(name)[:40]} is not a text")


def _read_boolean(cursor: Cursor) -> bool:
    byte = cursor.take(1)[0]
    if byte > 1:
        raise ValueError(f"it has the boolean {byte}")
    return bool(byte)


def _read_string(cursor: Cursor) -> str:
    return cursor.take(cursor.take_long()).decode("utf-8")


def _read_float(code: struct.Struct, cursor: Cursor) -> float:
    number: float = code.unpack(cursor.take(code.size))[0]
    return number


_PRIMITIVES: Final[Mapping[str, Read]] = {
    "null": lambda cursor: None,
    "boolean": _read_boolean,
    "int": Cursor.take_long,
    "long": Cursor.take_long,
    "float": partial(_read_float, struct.Struct("<f")),
    "double": partial(_read_float, struct.Struct("<d")),
    "bytes": lambda cursor: cursor.take(cursor.take_long()),
    "string": _read_string,
}


def _choose(choices: Sequence[Any], cursor: Cursor) -> Any:
    index = cursor.take_long()
    if not 0 <= index < len(choices):
        raise ValueError(f"it has the index {index} of {len(choices)} symbols or branches")
    return choices[index]


def _read_enum(symbols: Sequence[str], cursor: Cursor) -> Any:
    return _choose(symbols, cursor)


def _read_union(branches: Sequence[Read], cursor: Cursor) -> Any:
    return _choose(branches, cursor)(cursor)


def _read_record(fields: Sequence[tuple[str, Read]], cursor: Cursor) -> dict[str, Any]:
    cursor.count_values(len(fields) + 1)
    return {name: read(cursor) for name, read in fields}


def _read_array(read: Read, cursor: Cursor) -> list[Any]:
    items: list[Any] = []
    while count := _start_block(cursor):
        items.extend(read(cursor) for _ in range(count))
    return items


def _read_map(read: Read, cursor: Cursor) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    while count := _start_block(cursor):
        for _ in range(count):
            key = _read_string(cursor)
            entries[key] = read(cursor)
    return entries


def _start_block(cursor: Cursor) -> int:
    """Return the number of items in the next block of an array or a map; 0 after the last."""
    count = cursor.take_long()
    if count < 0:
        # The block's size in bytes follows, for readers that skip it.
        count = -count
        cursor.take_long()
    cursor.count_values(count)
    return count


def _convert(read: Read, schema: Mapping[str, Any]) -> Read:
    """Return a reader that converts what `read` returns by the schema's logical type."""
    key = schema["type"], schema.get("logicalType")
    convert = _LOGICAL_TYPES.get(key)
    if key[1] == "decimal" and key[0] in ("bytes", "fixed"):
        scale = int(schema.get("scale") or 0)
        convert = partial(write_decimal, scale=scale) if scale <= MAX_SCALE else None
    if convert is None:
        return read
    return lambda cursor: convert(read(cursor))


def _write_date(days: int) -> str | int:
    try:
        return (_EPOCH + days * _DAY).date().isoformat()
    except OverflowError:
        return days


def _write_time(unit: timedelta, count: int) -> str | int:
    since_midnight = count * unit if abs(count) < 10**11 else _DAY
    if not timedelta(0) <= since_midnight < _DAY:
        return count
    return (_EPOCH + since_midnight).time().isoformat()


def _write_timestamp(epoch: datetime, unit: timedelta, count: int) -> str | int:
    try:
        return (epoch + count * unit).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return count


_MILLISECOND = timedelta(milliseconds=1)
_MICROSECOND = timedelta(microseconds=1)

_LOGICAL_TYPES: Final[Mapping[tuple[str, str | None], Convert]] = {
    ("fixed", "uuid"): lambda raw: str(UUID(bytes=raw)),
    ("int", "date"): _write_date,
    ("int", "time-millis"): partial(_write_time, _MILLISECOND),
    ("long", "time-micros"): partial(_write_time, _MICROSECOND),
    ("long", "timestamp-millis"): partial(_write_timestamp, _EPOCH, _MILLISECOND),
    ("long", "timestamp-micros"): partial(_write_timestamp, _EPOCH, _MICROSECOND),
    ("long", "local-timestamp-millis"): partial(_write_timestamp, _LOCAL_EPOCH, _MILLISECOND),
    ("long", "local-timestamp-micros"): partial(_write_timestamp, _LOCAL_EPOCH, _MICROSECOND),
}
