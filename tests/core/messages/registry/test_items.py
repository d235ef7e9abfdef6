"""Messages that Confluent's serializers wrote, from Kafka's bytes to items and outcomes."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, ItemError, Stage, SystemicError
from embedstream_core.messages.fields import FieldExpressions
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.messages.registry.schema_registry import SchemaRegistry
from embedstream_core.records import Failure, Item
from protobuf_files import build_classes, build_shop, get_class
from registry_server import RegistryServer

VALUE = SerializationContext("pictures", MessageField.VALUE)
BY_TOPIC: dict[str, Any] = {"subject.name.strategy.type": "TOPIC"}
PNG = b"\x89PNG\r\n\x1a\n and the rest"


def read(value: Any, decoder: SchemaRegistry | None, **fields: str) -> Item:
    expressions = FieldExpressions(**fields) if fields else None
    reader = MessageReader(fields=expressions, decoder=decoder)
    item = reader.read(Message(value, "pictures-0-7"), accepts=("image",))
    assert isinstance(item, Item)
    return item


def test_avro(producer: SchemaRegistryClient, decoder: SchemaRegistry) -> None:
    schema = {
        "type": "record",
        "name": "Picture",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "data", "type": "bytes"},
            {"name": "taken", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        ],
    }
    write = AvroSerializer(producer, json.dumps(schema), conf=BY_TOPIC)
    item = read(write({"id": "a", "data": PNG, "taken": 0}, VALUE), decoder)

    assert (item.image_id, item.content) == ("a", PNG)
    assert item.attributes == {"taken": "1970-01-01T00:00:00Z"}


def test_protobuf_with_mapped_fields(
    producer: SchemaRegistryClient, decoder: SchemaRegistry
) -> None:
    picture = get_class(build_classes(build_shop()), "shop.Picture")
    write = ProtobufSerializer(picture, producer, conf=BY_TOPIC)
    value = write(picture(sku="a", image=PNG, color=1), VALUE)

    item = read(value, decoder, id="sku", data="image", attributes="{color: color}")

    assert (item.image_id, item.content) == ("a", PNG)
    assert item.attributes == {"color": "RED"}


def test_json(producer: SchemaRegistryClient, decoder: SchemaRegistry) -> None:
    write = JSONSerializer('{"title": "Picture", "type": "object"}', producer, conf=BY_TOPIC)
    item = read(write({"uri": "https://example.com/a.png", "shop": 42}, VALUE), decoder)

    assert (item.uri, item.attributes) == ("https://example.com/a.png", {"shop": "42"})


def test_a_schema_that_a_header_names(
    producer: SchemaRegistryClient, decoder: SchemaRegistry
) -> None:
    headers: list[tuple[str, Any]] = []
    where = SerializationContext("pictures", MessageField.VALUE, headers)
    conf = {**BY_TOPIC, "schema.id.serializer": header_schema_id_serializer}
    value = AvroSerializer(producer, '"bytes"', conf=conf)(PNG, where)
    message = Message(value, "pictures-0-7", headers=headers)

    item = MessageReader(decoder=decoder).read(message, accepts=("image",))
    assert isinstance(item, Item)
    assert (item.content, item.attributes) == (PNG, {})
    with pytest.raises(ItemError, match=r"__value_schema_id.*configure message\.registry"):
        MessageReader().read(message, accepts=("image",))
    assert isinstance(MessageReader(format="bytes").read(message, accepts=("image",)), Item)


def test_bytes_of_kafka_connect(registry: RegistryServer, decoder: SchemaRegistry) -> None:
    schema_id = registry.add("pictures-value", '"bytes"')

    assert read(registry.frame(schema_id, PNG), decoder).content == PNG


def test_without_a_registry_the_reason_says_what_to_configure(registry: RegistryServer) -> None:
    with pytest.raises(ItemError, match=r"schema id 7.*configure message\.registry"):
        read(registry.frame(7, b"\x02a"), None)


def test_a_registry_that_is_down_makes_no_failure_rows(
    registry: RegistryServer, decoder: SchemaRegistry
) -> None:
    value = registry.frame(7, b"\x02a")
    read_value = partial(read, value, decoder)
    failure = attempt(read_value, Stage.MESSAGE)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.stage) == (Code.MESSAGE_MALFORMED, Stage.MESSAGE)
    assert failure.message == "the schema 7 cannot be used: the registry does not hold it"

    registry.failures = [401]
    with pytest.raises(SystemicError):
        attempt(partial(read, registry.frame(8, b"\x02a"), decoder), Stage.MESSAGE)
