"""Protobuf files built without a compiler."""

from __future__ import annotations

import base64
from importlib import import_module
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

REPEATED = FieldDescriptorProto.LABEL_REPEATED
OPTIONAL = FieldDescriptorProto.LABEL_OPTIONAL


def add_field(message: Any, name: str, kind: str, *, repeated: bool = False) -> Any:
    """Add a field of a scalar kind, or of a message or enum by its full name (`.shop.Color`)."""
    field = message.field.add(name=name, number=len(message.field) + 1)
    field.label = REPEATED if repeated else OPTIONAL
    if kind.startswith("."):
        field.type_name = kind
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    return field


def add_map(message: Any, path: str, name: str, key: str, value: str) -> None:
    """Add a map field to the message with the full name `path`."""
    entry = message.nested_type.add(name=f"{name.title()}Entry")
    entry.options.map_entry = True
    add_field(entry, "key", key)
    add_field(entry, "value", value)
    add_field(message, name, f".{path}.{entry.name}", repeated=True)


def encode(file: FileDescriptorProto) -> str:
    """Return a file as a registry gives it for `format=serialized`."""
    return base64.b64encode(file.SerializeToString()).decode()


def build_shop() -> FileDescriptorProto:
    """A file with every kind of field that a document has its own form for."""
    file = FileDescriptorProto(name="shop.proto", package="shop", syntax="proto3")
    file.dependency[:] = [
        "google/protobuf/timestamp.proto",
        "google/protobuf/duration.proto",
        "google/protobuf/struct.proto",
        "google/protobuf/wrappers.proto",
        "google/type/date.proto",
        "confluent/meta.proto",
        "confluent/type/decimal.proto",
    ]
    color = file.enum_type.add(name="Color")
    for number, name in enumerate(("NONE", "RED")):
        color.value.add(name=name, number=number)
    file.message_type.add(name="Empty")
    picture = file.message_type.add(name="Picture")
    for name, kind in {
        "sku": "string",
        "image": "bytes",
        "size": "int64",
        "ratio": "double",
        "sold": "bool",
        "color": ".shop.Color",
        "taken": ".google.protobuf.Timestamp",
        "exposure": ".google.protobuf.Duration",
        "extra": ".google.protobuf.Struct",
        "note": ".google.protobuf.StringValue",
        "raw": ".google.protobuf.BytesValue",
        "bought": ".google.type.Date",
        "price": ".confluent.type.Decimal",
        "inside": ".shop.Picture.Inside",
    }.items():
        add_field(picture, name, kind)
    optional = add_field(picture, "caption", "string")
    optional.proto3_optional = True
    picture.oneof_decl.add(name="_caption")
    optional.oneof_index = 0
    add_field(picture, "tags", "string", repeated=True)
    add_map(picture, "shop.Picture", "labels", "int32", ".shop.Color")
    inside = picture.nested_type.add(name="Inside")
    add_field(inside, "parts", ".shop.Picture.Inside", repeated=True)
    add_map(inside, "shop.Picture.Inside", "flags", "bool", "string")
    album = file.message_type.add(name="Album")
    add_field(album, "pictures", ".shop.Picture", repeated=True)
    return file


def build_classes(*files: FileDescriptorProto) -> DescriptorPool:
    """Return a pool with files and with those of Google and Confluent that they import."""
    pool = DescriptorPool()
    added: set[str] = set()
    known = {file.name: file for file in files}

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        file = known.get(name)
        if file is None:
            place = "confluent_kafka.schema_registry." if name.startswith("confluent/") else ""
            module = import_module(f"{place}{name.removesuffix('.proto').replace('/', '.')}_pb2")
            file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for one in file.dependency:
            add(one)
        pool.AddSerializedFile(file.SerializeToString())

    for name in known:
        add(name)
    return pool


def get_class(pool: DescriptorPool, name: str) -> Any:
    """Return the class of a message."""
    return GetMessageClass(pool.FindMessageTypeByName(name))
