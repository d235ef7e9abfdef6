"""Protobuf messages, read with the descriptor of the file that defines them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedstream_core.extras import require_extra
from embedstream_core.messages.registry.cursor import Cursor
from embedstream_core.messages.registry.decimals import write_decimal
from embedstream_core.messages.registry.frame import read_message_indexes

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message

__all__ = ["build_protobuf_reader"]

_ROOT = "embedstream__root.proto"
# Files that every compiler of Protobuf has, and that are therefore in no registry.
_GOOGLE = re.compile(r"google/(protobuf|type)/[a-z_]+\.proto")
_DECIMAL = "confluent.type.Decimal"
_DECIMAL_FILE = "confluent/type/decimal.proto"
# A schema may define a type of such a name itself, in a file of its own and with other fields.
_FILES_OF_TYPES = frozenset(
    f"google/protobuf/{name}.proto"
    for name in ("duration", "field_mask", "struct", "timestamp", "wrappers")
) | {_DECIMAL_FILE}
# Their JSON form is a plain value; others of Google's types have fields like any message.
_AS_JSON = frozenset(
    f"google.protobuf.{name}"
    for name in ("Duration", "FieldMask", "ListValue", "Struct", "Timestamp", "Value")
)
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)


def build_protobuf_reader(
    schema: str, references: Sequence[tuple[str, str]]
) -> Callable[[bytes], Any]:
    """Return a function from the data of a value, which begins with indexes, to a plain document.

    A message becomes a dict by the names of its fields. Fields that can be absent are in it only if
    they are present; others have their default. Enums become names, or numbers that have no name;
    bytes stay bytes. Google's timestamps and durations and Confluent's decimals become texts,
    structs dicts, wrappers the value in them. The function raises ValueError or RecursionError for
    data that is no such message.

    `schema` is a FileDescriptorProto in base64, `references` are the import paths and descriptors
    of the files that it imports, each after those that it imports itself.

    Raises:
        ValueError: a descriptor is not well formed, or imports a file that is not known.
        MissingExtra: protobuf is not installed.
    """
    with require_extra("registry", feature="a message in Protobuf"):
        from google.protobuf.descriptor_pool import DescriptorPool
        from google.protobuf.message_factory import GetMessageClass

    pool = DescriptorPool()
    known: dict[str, FileDescriptorProto] = {}
    for name, text in [*references, (_ROOT, schema)]:
        # Those of the compiler come first, so that their types have the fields that are read.
        _add(pool, _find_common(name) or _load(name, text), known)

    def read(data: bytes) -> Any:
        indexes, content = read_message_indexes(data)
        name = _find_name(known[_ROOT], indexes)
        message_type = GetMessageClass(pool.FindMessageTypeByName(name))
        return _read_message(message_type, content)

    return read


def _load(name: str, text: str) -> FileDescriptorProto:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.message import DecodeError

    try:
        file = FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, DecodeError):
        raise ValueError(
            "the registry gives Protobuf schemas as text, not as descriptors: it does not know "
            "format=serialized, as Confluent's, Redpanda's since 25.2 and Karapace do"
        ) from None
    # Files are imported by the name in the reference.
    file.name = name
    return file


def _add(
    pool: DescriptorPool, file: FileDescriptorProto, known: dict[str, FileDescriptorProto]
) -> None:
    """Add a file to a pool, after those that it imports."""
    if file.name in known:
        return
    for imported in file.dependency:
        if imported in known:
            continue
        if (common := _find_common(imported)) is None:
            raise ValueError(
                f"it imports '{imported}', which is not among its references in the registry"
            )
        _add(pool, common, known)
    try:
        pool.Add(file)
    except TypeError as error:
        raise ValueError(f"its descriptor is not consistent: {error}") from None
    known[file.name] = file


def _find_common(name: str) -> FileDescriptorProto | None:
    """Return a file that every compiler or serializer brings, so that no registry has to."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

    file = FileDescriptorProto(name=name, syntax="proto3")
    if name == "confluent/meta.proto":
        # It defines options, which do not change what is read.
        return file
    if name == _DECIMAL_FILE:
        file.package, _, decimal = _DECIMAL.rpartition(".")
        fields = {"value": "TYPE_BYTES", "precision": "TYPE_UINT32", "scale": "TYPE_INT32"}
        message = file.message_type.add(name=decimal)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            message.field.add(
                name=field,
                number=number,
                type=FieldDescriptorProto.Type.Value(kind),
                label=FieldDescriptorProto.LABEL_OPTIONAL,
            )
        return file
    if _GOOGLE.fullmatch(name):
        try:
            module = import_module(f"{name.removesuffix('.proto').replace('/', '.')}_pb2")
        except ModuleNotFoundError:
            pass
        else:
            module.DESCRIPTOR.CopyToProto(file)
            return file
    return None


def _find_name(file: FileDescriptorProto, indexes: Sequence[int]) -> str:
    """Return the full name of the message at a path of indexes."""
    names = [file.package] if file.package else []
    messages: Sequence[DescriptorProto] = file.message_type
    for index in indexes:
        found = messages[index] if 0 <= index < len(messages) else None
        if found is None or found.options.map_entry:
            # Compilers write the entries of maps as messages; Confluent's Java serializer counts
            # the messages in the text of the schema, where there are none.
            written = [one for one in messages if not one.options.map_entry]
            if not 0 <= index < len(written):
                raise ValueError(f"its schema has no message {list(indexes)}")
            found = written[index]
        names.append(found.name)
        messages = found.nested_type
    return ".".join(names)


def _read_message(message_type: type[Message], content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        message = message_type.FromString(content)
    except DecodeError as error:
        raise ValueError(str(error)) from None
    return _build_document(message, Cursor(content))


def _build_document(message: Message, cursor: Cursor) -> Any:
    """Return a message as a plain value; `cursor` counts the values."""
    is_common = message.DESCRIPTOR.file.name in _FILES_OF_TYPES
    name = message.DESCRIPTOR.full_name if is_common else ""
    if name in _WRAPPERS:
        return message.value
    if name in _AS_JSON:
        from google.protobuf.json_format import MessageToDict

        # A time that is out of range is left in its fields.
        with suppress(ValueError):
            return MessageToDict(message)
    fields = message.DESCRIPTOR.fields
    cursor.count_values(len(fields) + 1)
    document = {
        field.name: _read_field(message, field, cursor)
        for field in fields
        if not field.has_presence or message.HasField(field.name)
    }
    if name == _DECIMAL:
        return write_decimal(document["value"], document["scale"])
    return document


def _read_field(message: Message, field: FieldDescriptor, cursor: Cursor) -> Any:
    value = getattr(message, field.name)
    if not field.is_repeated:
        return _read_value(value, field, cursor)
    cursor.count_values(len(value))
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return [_read_value(one, field, cursor) for one in value]
    values = entry.fields_by_name["value"]
    # As in JSON, keys are texts.
    return {_write_key(key): _read_value(one, values, cursor) for key, one in value.items()}


def _read_value(value: Any, field: FieldDescriptor, cursor: Cursor) -> Any:
    if field.message_type is not None:
        return _build_document(value, cursor)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value


def _write_key(key: str | int | bool) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)
