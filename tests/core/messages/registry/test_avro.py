"""Avro values become plain documents, and no bytes make more of them than their length allows."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import io
import json
import math
import uuid
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstream_core.messages.registry.avro import build_avro_reader

WRITTEN = datetime.datetime(2026, 1, 31, 12, 0, 0, 250_000, datetime.UTC)
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
COLOR = {"type": "enum", "name": "Color", "symbols": ["RED", "BLUE"]}
FOUR = {"type": "fixed", "name": "Four", "size": 4}
TREE: dict[str, Any] = {
    "type": "record",
    "name": "Tree",
    "fields": [{"name": "leaves", "type": {"type": "array", "items": "Tree"}}],
}
LIST: dict[str, Any] = {
    "type": "record",
    "name": "Node",
    "fields": [{"name": "next", "type": ["null", "Node"], "default": None}],
}


def write(schema: Any, value: Any) -> bytes:
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(schema), value)
    return file.getvalue()


def read(schema: Any, data: bytes) -> Any:
    return build_avro_reader(json.dumps(schema), ())(data)


def refused(schema: Any, data: bytes) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read(schema, data)
    return str(caught.value)


def varint(number: int) -> bytes:
    return write("long", number)


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ("null", None, None),
        ("boolean", True, True),
        ("int", -(2**31), -(2**31)),
        ("long", 2**63 - 1, 2**63 - 1),
        ("float", 0.5, 0.5),
        ("double", math.pi, math.pi),
        ("string", "grün", "grün"),
        (["null", "bytes"], b"\xff\xd8", b"\xff\xd8"),
        (FOUR, b"abcd", b"abcd"),
        (COLOR, "BLUE", "BLUE"),
        ({"type": "array", "items": "int"}, [1, 2], [1, 2]),
        (
            {"type": "map", "values": ["null", "string"]},
            {"a": None, "b": "c"},
            {"a": None, "b": "c"},
        ),
        (LIST, {"next": {"next": None}}, {"next": {"next": None}}),
        (TREE, {"leaves": [{"leaves": []}]}, {"leaves": [{"leaves": []}]}),
    ],
)
def test_each_type_becomes_a_plain_value(schema: Any, value: Any, expected: Any) -> None:
    assert read(schema, write(schema, value)) == expected


@pytest.mark.parametrize(
    ("kind", "logical_type", "value", "expected"),
    [
        ("int", "date", datetime.date(2026, 1, 31), "2026-01-31"),
        ("int", "date", 2**31 - 1, 2**31 - 1),
        ("int", "time-millis", datetime.time(12, 30), "12:30:00"),
        ("int", "time-millis", -1, -1),
        ("long", "time-micros", datetime.time(12, 30, 0, 7), "12:30:00.000007"),
        ("long", "time-micros", 2**62, 2**62),
        ("long", "timestamp-millis", WRITTEN, "2026-01-31T12:00:00.250000Z"),
        ("long", "timestamp-micros", WRITTEN, "2026-01-31T12:00:00.250000Z"),
        ("long", "timestamp-millis", 2**63 - 1, 2**63 - 1),
        ("long", "timestamp-nanos", 17, 17),
        (
            "long",
            "local-timestamp-millis",
            WRITTEN.replace(tzinfo=None),
            "2026-01-31T12:00:00.250000",
        ),
        ("string", "uuid", str(ID), str(ID)),
        ("string", "of our own", "a", "a"),
    ],
)
def test_logical_types_become_texts_or_stay_numbers(
    kind: str, logical_type: str, value: Any, expected: Any
) -> None:
    schema = {"type": kind, "logicalType": logical_type}
    data = write(kind if isinstance(value, int) else schema, value)

    assert read(schema, data) == expected


@pytest.mark.parametrize("text", ["0.00", "-12.34", "99999999999999999999999999.99", "0.01"])
@pytest.mark.parametrize("kind", ["bytes", "fixed"])
def test_decimals_keep_all_their_digits(kind: str, text: str) -> None:
    schema = {"type": kind, "name": "Price", "size": 16, "logicalType": "decimal"}
    schema |= {"precision": 28, "scale": 2}

    assert read(schema, write(schema, decimal.Decimal(text))) == text


def test_sixteen_bytes_can_be_a_uuid() -> None:
    schema = {"type": "fixed", "name": "Id", "size": 16, "logicalType": "uuid"}

    assert read(schema, ID.bytes) == str(ID)


def test_a_union_of_other_schemas_finds_them() -> None:
    made = {"type": "record", "name": "shop.Made", "fields": [{"name": "sku", "type": "string"}]}
    gone = {"type": "record", "name": "shop.Gone", "fields": [{"name": "at", "type": "long"}]}
    both = {"type": "record", "name": "shop.Both", "fields": [{"name": "made", "type": "Made"}]}
    references = [(str(one["name"]), json.dumps(one)) for one in (made, gone, both)]
    reader = build_avro_reader('["shop.Made", "shop.Both"]', references)

    assert reader(varint(0) + write("string", "a")) == {"sku": "a"}
    assert reader(varint(1) + write("string", "b")) == {"made": {"sku": "b"}}


def test_defaults_of_a_wrong_type_do_no_harm() -> None:
    field = {"name": "at", "type": ["null", "long"], "default": "never"}

    assert read({"type": "record", "name": "Old", "fields": [field]}, varint(1) + varint(5)) == {
        "at": 5
    }


@pytest.mark.parametrize("picture", [b"\xff\xd8\xff\xe0 a picture", b"\x89PNG", b""])
def test_bytes_alone_may_have_no_length(picture: bytes) -> None:
    """Confluent's Java serializer, and so Kafka Connect, omits it; other serializers write it."""
    assert read("bytes", picture) == picture
    assert read({"type": "bytes"}, write("bytes", picture)) == picture


@pytest.mark.parametrize(
    ("schema", "data", "fault"),
    [
        ("string", varint(10) + b"abc", "it needs 10 bytes at byte 1, and 3 are left"),
        ("string", varint(-3) + b"abc", "it needs -3 bytes"),
        ("string", varint(2**62) + b"abc", "it needs 4611686018427387904 bytes"),
        ("string", varint(1) + b"\xff", "'utf-8' codec can't decode"),
        ("long", b"\xff" * 20, "no whole number of up to 64 bits"),
        ("long", b"\xff" * 9 + b"\x7f", "no whole number of up to 64 bits"),
        ("long", b"\x80", "no whole number of up to 64 bits"),
        ("long", b"\x02\x02\x02", "2 of 3 bytes are left over"),
        ("boolean", b"\x07", "it has the boolean 7"),
        ("double", b"abc", "it needs 8 bytes"),
        (FOUR, b"abc", "it needs 4 bytes"),
        (COLOR, varint(-1), "it has the index -1 of 2"),
        (["null", "string"], varint(-1) + varint(0), "it has the index -1 of 2"),
        (["null", "string"], varint(2), "it has the index 2 of 2"),
        ({"type": "array", "items": "int"}, varint(2**60) + b"\x02", "it holds more than 100"),
        ({"type": "array", "items": "null"}, varint(10**7) + b"\x00", "it holds more than 100"),
        ({"type": "array", "items": "int"}, varint(-(2**63)) + b"\x02", "it holds more than 100"),
        ({"type": "map", "values": "int"}, varint(10**6) + b"\x00", "it holds more than 100"),
        ({"type": "bytes", "logicalType": "decimal"}, varint(300) + b"z" * 300, "300 bytes"),
    ],
)
def test_bytes_that_the_schema_did_not_write_are_refused(
    schema: Any, data: bytes, fault: str
) -> None:
    assert fault in refused(schema, data)


def test_depth_ends_with_an_error_not_with_the_process() -> None:
    with pytest.raises(RecursionError):
        read(LIST, b"\x02" * 100_000 + b"\x00")


def test_a_record_that_is_made_of_itself_ends_too() -> None:
    endless = {"type": "record", "name": "Loop", "fields": [{"name": "loop", "type": "Loop"}]}

    with pytest.raises((ValueError, RecursionError)):
        read(endless, b"")


def test_few_bytes_make_few_values_of_any_schema() -> None:
    schema: Any = {"type": "record", "name": "R0", "fields": [{"name": "a", "type": "null"}]}
    for index in range(1, 30):
        doubled = [{"name": "a", "type": schema}, {"name": "b", "type": f"R{index - 1}"}]
        schema = {"type": "record", "name": f"R{index}", "fields": doubled}

    assert "it holds more than 100000 values in 0 bytes" in refused(schema, b"")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "17",
        "null",
        '"Unknown"',
        '{"type": "record"}',
        '{"type": {"type": "int"}}',
        '{"type": "fixed", "name": "F", "size": "many"}',
        '{"type": "enum", "name": "E"}',
    ],
)
def test_what_is_not_a_schema_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        build_avro_reader(text, ())


def test_a_schema_may_not_be_nested_without_end() -> None:
    text = '{"type": "array", "items": ' * 300 + '"int"' + "}" * 300

    with pytest.raises(ValueError, match="nested in more than 200 levels"):
        build_avro_reader(text, ())


NAMES = st.sampled_from("abcdef")
PRIMITIVES = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=20),
    "string": st.text(max_size=20),
}


@st.composite
def schemas_with_values(draw: st.DrawFn, depth: int = 3) -> tuple[Any, Any]:
    kind = draw(
        st.sampled_from([*PRIMITIVES, *(["array", "map", "union", "record"] if depth else [])])
    )
    if kind in PRIMITIVES:
        return kind, draw(PRIMITIVES[kind])
    inner, value = draw(schemas_with_values(depth - 1))
    repeat = draw(st.integers(0, 3))
    if kind == "array":
        return {"type": "array", "items": inner}, [value] * repeat
    if kind == "map":
        return {"type": "map", "values": inner}, dict.fromkeys("xyz"[:repeat], value)
    if kind == "union":
        is_fit = inner != "null" and not isinstance(inner, list)
        return (["null", inner], value if repeat else None) if is_fit else (inner, value)
    name = f"Record{depth}{draw(st.integers(0, 10**9))}"
    return {"type": "record", "name": name, "fields": [{"name": "f", "type": inner}]}, {"f": value}


@settings(max_examples=30, deadline=None)
@given(schemas_with_values(), st.data())
def test_any_bytes_are_a_document_or_refused(made: tuple[Any, Any], data: st.DataObject) -> None:
    """What fastavro writes is read as fastavro reads it; changed bytes do no harm."""
    schema, value = made
    written = write(schema, value)
    reader = build_avro_reader(json.dumps(schema), ())
    assert reader(written) == fastavro.schemaless_reader(io.BytesIO(written), schema, None)

    changed = bytearray(written)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=10))
    with contextlib.suppress(ValueError, RecursionError):
        reader(bytes(changed))


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "record", "name": "r", "fields": [{"name": ["a"], "type": "null"}]}',
        '{"type": "record", "name": "r", "fields": [{"name": 7, "type": "null"}]}',
        '{"type": "enum", "name": "e", "symbols": {"a": 1}}',
        '{"type": "fixed", "name": "f", "size": 1e999}',
    ],
)
def test_what_fastavro_does_not_check_is_the_schema_s_fault(schema: str) -> None:
    """Before a value is read, so that the schema is not asked for again with each."""
    with pytest.raises(ValueError, match="not an Avro schema"):
        build_avro_reader(schema, ())
