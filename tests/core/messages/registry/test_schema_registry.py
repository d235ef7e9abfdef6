"""What Confluent's serializers write becomes a document, with one request for each schema."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import (
    Schema,
    SchemaReference,
    SchemaRegistryClient,
    header_schema_id_serializer,
)
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from embedstream_core.errors import Code, ItemError, MissingExtra, SetupError, SystemicError
from embedstream_core.messages.registry.client import RegistryClient
from embedstream_core.messages.registry.connection import RegistryConnection
from embedstream_core.messages.registry.schema_registry import SchemaReaders, SchemaRegistry
from protobuf_files import add_field, build_classes, build_shop, get_class
from registry_server import RegistryServer

VALUE = SerializationContext("pictures", MessageField.VALUE)
BY_TOPIC: dict[str, Any] = {"subject.name.strategy.type": "TOPIC"}
PICTURE = {"sku": "a", "image": b"\xff\xd8", "tags": ["x"]}
AVRO = {
    "type": "record",
    "name": "Picture",
    "namespace": "shop",
    "fields": [
        {"name": "sku", "type": "string"},
        {"name": "image", "type": ["null", "bytes"]},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}
JSON_SCHEMA = {"title": "Picture", "type": "object", "properties": {"sku": {"type": "string"}}}


def write_avro(producer: SchemaRegistryClient) -> bytes:
    return bytes(AvroSerializer(producer, json.dumps(AVRO), conf=BY_TOPIC)(PICTURE, VALUE) or b"")


def refused(decoder: SchemaRegistry, value: bytes) -> str:
    with pytest.raises(ItemError) as caught:
        decoder.decode(value)
    assert caught.value.code is Code.MESSAGE_MALFORMED
    return caught.value.message


def test_avro(
    producer: SchemaRegistryClient, decoder: SchemaRegistry, registry: RegistryServer
) -> None:
    value = write_avro(producer)
    registry.requests.clear()

    assert [decoder.decode(value) for _ in range(3)] == [PICTURE] * 3
    assert registry.requests == ["/schemas/ids/1"]


def test_avro_with_references(producer: SchemaRegistryClient, decoder: SchemaRegistry) -> None:
    producer.register_schema("shop/picture", Schema(json.dumps(AVRO), "AVRO"))
    references = [SchemaReference("shop.Picture", "shop/picture", 1)]
    event = Schema('["null", "shop.Picture"]', "AVRO", references)
    value = AvroSerializer(producer, event, conf=BY_TOPIC)(PICTURE, VALUE)

    assert value is not None
    assert decoder.decode(value) == PICTURE


def test_json(
    producer: SchemaRegistryClient, decoder: SchemaRegistry, registry: RegistryServer
) -> None:
    value = JSONSerializer(json.dumps(JSON_SCHEMA), producer, conf=BY_TOPIC)({"sku": "ä"}, VALUE)

    assert value is not None
    assert decoder.decode(value) == {"sku": "ä"}
    assert "the schema 1: Expecting" in refused(decoder, registry.frame(1, b"{"))
    assert "it is nested too deeply" in refused(decoder, registry.frame(1, b"[" * 100_000))


def test_protobuf(
    producer: SchemaRegistryClient, decoder: SchemaRegistry, registry: RegistryServer
) -> None:
    shop = build_shop()
    order = FileDescriptorProto(name="order.proto", package="shop", syntax="proto3")
    order.dependency.append("shop.proto")
    outer = order.message_type.add(name="Order")
    add_field(outer.nested_type.add(name="Line"), "picture", ".shop.Picture")
    classes = build_classes(shop, order)
    line = get_class(classes, "shop.Order.Line")
    written = line(picture=get_class(classes, "shop.Picture")(image=b"\xff\xd8", color=1))
    value = ProtobufSerializer(line, producer, conf=BY_TOPIC)(written, VALUE)
    assert value is not None
    registry.requests.clear()

    picture = decoder.decode(value)["picture"]

    assert (picture["image"], picture["color"]) == (b"\xff\xd8", "RED")
    paths = [one.partition("?") for one in registry.requests]
    assert [path for path, _, _ in paths] == ["/schemas/ids/2"] * 2 + [
        "/subjects/shop.proto/versions/1"
    ]
    assert "format=serialized" in paths[1][2]
    assert "format=serialized" in paths[2][2]


def test_a_registry_without_descriptors_is_named(
    producer: SchemaRegistryClient, decoder: SchemaRegistry, registry: RegistryServer
) -> None:
    empty = get_class(build_classes(build_shop()), "shop.Empty")
    value = ProtobufSerializer(empty, producer, conf=BY_TOPIC)(empty(), VALUE)
    registry.serializes = False

    assert value is not None
    assert "the schema 1 cannot be used: the registry gives Protobuf" in refused(decoder, value)


def test_the_schema_may_be_named_in_a_header(
    producer: SchemaRegistryClient, decoder: SchemaRegistry
) -> None:
    headers: list[tuple[str, str | bytes | None]] = []
    where = SerializationContext("pictures", MessageField.VALUE, headers)
    in_header = {**BY_TOPIC, "schema.id.serializer": header_schema_id_serializer}
    value = AvroSerializer(producer, json.dumps(AVRO), conf=in_header)(PICTURE, where)
    ((name, header),) = headers

    assert name == "__value_schema_id"
    assert value is not None
    assert isinstance(header, bytes)
    assert decoder.decode(value, schema_header=header) == PICTURE
    # The same, in the value.
    assert decoder.decode(header + value) == PICTURE


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (b"", "does not begin with a zero and the id"),
        (b"\x00\x00\x00\x01", "does not begin with a zero and the id"),
        (b"\x01" * 16, "does not begin with a zero and the id"),
        (b"{}", "does not begin with a zero and the id"),
        (b"\x00\x00\x00\x00\x00a", "0 is no schema's id"),
        (b"\x00\xff\xff\xff\xffa", "4294967295 is no schema's id"),
    ],
)
def test_a_value_without_a_schema_costs_no_request(
    decoder: SchemaRegistry, registry: RegistryServer, value: bytes, fault: str
) -> None:
    assert fault in refused(decoder, value)
    assert not registry.requests


def test_the_reason_names_the_schema(decoder: SchemaRegistry, registry: RegistryServer) -> None:
    registry.add("a", json.dumps("string"))
    registry.add("b", "{")
    registry.add("c", "{}", schemaType="THRIFT")
    registry.add("d", "[" * 50_000)

    reason = "the value cannot be read with the schema 1: 1 of 2 bytes are left over"
    assert refused(decoder, registry.frame(1, b"\x00\x00")) == reason
    for schema_id, fault in {
        2: "Expecting property name",
        3: "it is of the kind THRIFT",
        4: "it is nested too deeply",
        9: "the registry does not hold it",
    }.items():
        reason = refused(decoder, registry.frame(schema_id, b"a"))
        assert reason.startswith(f"the schema {schema_id} cannot be used: {fault}")


@contextlib.contextmanager
def readers(registry: RegistryServer, clock: Callable[[], float]) -> Iterator[SchemaReaders]:
    client = RegistryClient(RegistryConnection(registry.url))
    with contextlib.closing(client):
        yield SchemaReaders(client, clock=clock)


def test_an_unknown_schema_costs_few_requests_and_is_found_once_it_is_there(
    registry: RegistryServer,
) -> None:
    """One message a second for ten minutes: the pauses are 1, 2, 4, … and at last 60 seconds."""
    now_s = 0.0
    with readers(registry, lambda: now_s) as found:
        for second in range(600):
            now_s = float(second)
            for _ in range(2):
                with pytest.raises(ValueError, match="does not hold it"):
                    found.find("ids/1")
        assert len(registry.requests) == 15

        registry.add("a", json.dumps("string"))
        now_s += 60
        assert found.find("ids/1")(b"\x02a") == "a"


def test_a_new_schema_is_found_within_a_second(registry: RegistryServer) -> None:
    now_s = 0.0
    with readers(registry, lambda: now_s) as found:
        with pytest.raises(ValueError, match="does not hold it"):
            found.find("ids/1")
        registry.add("a", json.dumps("string"))
        now_s = 1.0

        assert found.find("ids/1")(b"\x02a") == "a"


def test_the_caches_are_bounded(registry: RegistryServer) -> None:
    for number in range(300):
        registry.add(f"s{number}", json.dumps({"type": "string", "number": number}))
    with readers(registry, lambda: 0.0) as found:
        for number in range(1, 301):
            found.find(f"ids/{number}")
        for number in range(2000, 3100):
            with pytest.raises(ValueError, match="does not hold it"):
                found.find(f"ids/{number}")
        registry.requests.clear()
        found.find("ids/300")
        found.find("ids/1")
        with pytest.raises(ValueError, match="does not hold it"):
            found.find("ids/3099")
        with pytest.raises(ValueError, match="does not hold it"):
            found.find("ids/2000")

    assert registry.requests == ["/schemas/ids/1", "/schemas/ids/2000"]


def test_an_outage_is_not_remembered(decoder: SchemaRegistry, registry: RegistryServer) -> None:
    registry.add("a", json.dumps("string"))
    registry.failures = [401]

    with pytest.raises(SystemicError):
        decoder.decode(registry.frame(1, b"\x02a"))
    assert decoder.decode(registry.frame(1, b"\x02a")) == "a"


def test_equal_decoders_of_a_process_share_their_schemas(
    producer: SchemaRegistryClient, decoder: SchemaRegistry, registry: RegistryServer
) -> None:
    value = write_avro(producer)
    registry.requests.clear()
    sent = [pickle.loads(pickle.dumps(decoder)) for _ in range(8)]
    decoder.decode(value)

    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda one=one: found.append(one.decode(value))) for one in sent
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [PICTURE] * 8
    assert registry.requests == ["/schemas/ids/1"]


def test_the_check_asks_once(decoder: SchemaRegistry, registry: RegistryServer) -> None:
    assert decoder.check() == "it answers"
    assert registry.requests == ["/subjects?limit=1"]

    registry.authorization = "Bearer none"
    with pytest.raises(SetupError, match="refuses the credentials"):
        decoder.check()


def test_the_extra_is_named_where_it_is_missing(
    decoder: SchemaRegistry, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add("a", json.dumps("string"))
    registry.add("b", "", schemaType="PROTOBUF")
    for name in (
        "fastavro",
        "fastavro.schema",
        "google.protobuf",
        "google.protobuf.descriptor_pool",
    ):
        monkeypatch.setitem(sys.modules, name, None)

    for call in (
        decoder.check,
        lambda: decoder.decode(registry.frame(1, b"a")),
        lambda: decoder.decode(registry.frame(2, b"a")),
    ):
        with pytest.raises(MissingExtra, match=r"embedstream\[registry\]"):
            call()


def test_the_packages_are_imported_only_for_values_that_need_them() -> None:
    script = (
        "import sys; import embedstream_core.messages.registry.schema_registry; "
        "print([name for name in ('fastavro', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
