"""Protobuf messages become plain documents, and no bytes make more of them than their length."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstream_core.messages.registry.protobuf import build_protobuf_reader
from protobuf_files import add_field, build_classes, build_shop, encode, get_class

SHOP = build_shop()
CLASSES = build_classes(SHOP)
Picture = get_class(CLASSES, "shop.Picture")
READ = build_protobuf_reader(encode(SHOP), ())
# The message with the index 1.
PICTURE = b"\x02\x02"


def build_picture() -> Any:
    made = Picture(sku="a", image=b"\xff\xd8", size=-5, ratio=0.5, sold=True, color=1, caption="")
    made.taken.FromJsonString("2026-01-31T12:00:00.25Z")
    made.exposure.FromMilliseconds(1500)
    made.extra.update({"a": [1, None, "x"]})
    made.note.value = "hand-made"
    made.raw.value = b"\x00"
    made.bought.year = 2026
    made.price.value, made.price.scale = (-1234).to_bytes(4, "big", signed=True), 2
    made.inside.parts.add().flags[True] = "on"
    made.tags.extend(["x", "y"])
    made.labels[7] = 1
    return made


def test_each_kind_of_field_becomes_a_plain_value() -> None:
    assert READ(PICTURE + build_picture().SerializeToString()) == {
        "sku": "a",
        "image": b"\xff\xd8",
        "size": -5,
        "ratio": 0.5,
        "sold": True,
        "color": "RED",
        "taken": "2026-01-31T12:00:00.250Z",
        "exposure": "1.500s",
        "extra": {"a": [1.0, None, "x"]},
        "note": "hand-made",
        "raw": b"\x00",
        "bought": {"year": 2026, "month": 0, "day": 0},
        "price": "-12.34",
        "inside": {"parts": [{"parts": [], "flags": {"true": "on"}}], "flags": {}},
        "caption": "",
        "tags": ["x", "y"],
        "labels": {"7": "RED"},
    }


def test_only_fields_that_can_be_absent_are() -> None:
    assert READ(PICTURE) == {
        "sku": "",
        "image": b"",
        "size": 0,
        "ratio": 0.0,
        "sold": False,
        "color": "NONE",
        "tags": [],
        "labels": {},
    }


def test_an_enum_without_a_name_keeps_its_number() -> None:
    assert READ(PICTURE + Picture(color=77).SerializeToString())["color"] == 77


def test_a_time_out_of_range_keeps_its_fields() -> None:
    made = Picture()
    made.taken.seconds = 2**62

    assert READ(PICTURE + made.SerializeToString())["taken"] == {"seconds": 2**62, "nanos": 0}


@pytest.mark.parametrize(
    ("indexes", "expected"),
    [
        (b"\x00", {}),
        (b"\x02\x00", {}),
        # Java counts the messages in the text, where the entries of `labels` are none.
        (b"\x04\x02\x00", {"parts": [], "flags": {}}),
        (b"\x04\x02\x02", {"parts": [], "flags": {}}),
    ],
)
def test_indexes_name_the_message(indexes: bytes, expected: object) -> None:
    assert READ(indexes) == expected


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "no whole number"),
        (b"\x04\x02", "no whole number"),
        (b"\x01", "-1 message indexes (written with use.deprecated.format?)"),
        (b"\xfe\xff\xff\xff\x0f", "message indexes"),
        (b"\x02\x08", "no message [4]"),
        (b"\x02\x03", "no message [-2]"),
        (b"\x06\x02\x04\x00", "no message [1, 2, 0]"),
        (PICTURE + b"\xff", "Error parsing message"),
        (PICTURE + b"\x0a\x7fa", "Error parsing message"),
        (PICTURE + b"\x0a\x01\xff", "Error parsing message"),
        (b"\x02\x04" + b"\x0a\x00" * 10_000, "it holds more than 120000 values in 20000 bytes"),
    ],
)
def test_bytes_that_are_no_such_message_are_refused(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        READ(data)

    assert fault in str(caught.value)


def test_a_message_may_not_be_nested_without_end() -> None:
    inside = b""
    for _ in range(200):
        inside = b"\x0a" + length(inside) + inside

    with pytest.raises(ValueError, match=r"."):
        READ(b"\x04\x02\x00" + inside)


def length(content: bytes) -> bytes:
    low, high = len(content) & 0x7F, len(content) >> 7
    return bytes([low | 0x80, high]) if high else bytes([low])


def test_imported_files_are_found_by_the_name_of_their_reference() -> None:
    colors = FileDescriptorProto(name="made elsewhere", package="paint", syntax="proto3")
    colors.dependency.append("base.proto")
    add_field(colors.message_type.add(name="Paint"), "base", ".paint.Base")
    base = FileDescriptorProto(name="other", package="paint", syntax="proto3")
    add_field(base.message_type.add(name="Base"), "name", "string")
    root = FileDescriptorProto(name="root", package="paint", syntax="proto3")
    root.dependency.append("paint/colors.proto")
    add_field(root.message_type.add(name="Wall"), "paint", ".paint.Paint")

    references = [("base.proto", encode(base)), ("paint/colors.proto", encode(colors))]
    read = build_protobuf_reader(encode(root), references)

    assert read(b"\x00\x0a\x05\x0a\x03\x0a\x01x") == {"paint": {"base": {"name": "x"}}}
    with pytest.raises(
        ValueError, match=r"imports 'base\.proto', which is not among its references"
    ):
        build_protobuf_reader(encode(root), references[1:])


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ('syntax = "proto3"; message A {}', "as text, not as descriptors"),
        ("AAAA", "as text, not as descriptors"),
        (encode(FileDescriptorProto(dependency=["google/protobuf/nothing.proto"])), "imports"),
        (encode(FileDescriptorProto(dependency=["google/../os.proto"])), "imports"),
        (encode(FileDescriptorProto(dependency=["embedstream__root.proto"])), "imports"),
    ],
)
def test_what_is_not_a_descriptor_is_refused(schema: str, fault: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        build_protobuf_reader(schema, ())

    assert fault in str(caught.value)


def test_a_descriptor_has_to_be_consistent() -> None:
    file = FileDescriptorProto(name="a", syntax="proto3")
    add_field(file.message_type.add(name="A"), "b", ".Missing")

    with pytest.raises(ValueError, match="its descriptor is not consistent"):
        build_protobuf_reader(encode(file), ())


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_bytes_are_a_document_or_refused(data: st.DataObject) -> None:
    changed = bytearray(PICTURE + build_picture().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=10))
    with contextlib.suppress(ValueError, RecursionError):
        READ(bytes(changed))


def test_a_schema_may_define_types_of_known_names() -> None:
    """Only the files of Google and Confluent have the fields that are read of these types."""
    for package, name in (
        ("google.protobuf", "StringValue"),
        ("google.protobuf", "Timestamp"),
        ("confluent.type", "Decimal"),
    ):
        own = FileDescriptorProto(name="own.proto", package=package, syntax="proto3")
        add_field(own.message_type.add(name=name), "other", "string")
        read = build_protobuf_reader(encode(own), ())
        assert read(b"\0\x0a\x01a") == {"other": "a"}


def test_files_of_the_compiler_have_its_fields_whatever_the_registry_holds() -> None:
    empty = FileDescriptorProto(package="confluent.type", syntax="proto3")
    empty.message_type.add(name="Decimal")
    name = "confluent/type/decimal.proto"
    root = FileDescriptorProto(syntax="proto3", dependency=[name])
    add_field(root.message_type.add(name="Root"), "price", ".confluent.type.Decimal")
    read = build_protobuf_reader(encode(root), [(name, encode(empty))])
    assert read(b"\0\x0a\x03\x0a\x01\x05") == {"price": "5"}
