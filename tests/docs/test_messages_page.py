"""docs/messages.md and the recipes for other systems: their configurations read such messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedstream.config.sections.messages import MessageConfig
from embedstream_core.errors import Code, ItemError
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.records import Deletion, Item

DOCS = Path(__file__).parents[2] / "docs"


def find_readers(page: str, title: str) -> list[MessageReader]:
    """Return the readers that the configurations of a section make, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    after = re.split(rf"^##+ {title}$", text, flags=re.MULTILINE)[1]
    section = re.split(r"^##+ ", after, flags=re.MULTILINE)[0]
    blocks = [one.split("\n```")[0] for one in section.split("```yaml\n")[1:]]
    return [
        MessageConfig.model_validate(yaml.safe_load(one)["message"]).build_reader()
        for one in blocks
    ]


def read(reader: MessageReader, document: Any) -> Item | Deletion:
    value = None if document is None else json.dumps(document).encode()
    return reader.read(Message(value, "t-0-0", b'{"id": 7}'), accepts=("image",))


CONNECT, MINIO, DEBEZIUM, CLOUD_EVENT = find_readers("recipes.md", "Messages of other systems")


def test_the_example_of_the_page() -> None:
    (reader,) = find_readers("messages.md", "Fields")
    document = {
        "sku": "s-1",
        "image": {"url": "s3://b/k"},
        "caption": "red",
        "store": {"name": "Nord"},
        "price": 12.5,
    }

    attributes = {"shop": "Nord", "price": "12.5", "text": "red"}
    assert read(reader, document) == Item("s-1", uri="s3://b/k", attributes=attributes)


def test_kafka_connect() -> None:
    payload = {"sku": 7, "picture_url": "s3://b/k", "shop": None}
    schema = {"type": "struct", "fields": [], "optional": False}

    item = read(CONNECT, {"schema": schema, "payload": payload})

    attributes = {"sku": "7", "picture_url": "s3://b/k", "shop": "null"}
    assert item == Item("7", uri="s3://b/k", attributes=attributes)


def test_notifications_of_minio() -> None:
    event = {"Key": "pictures/a b.jpg", "Records": [{"s3": {"object": {"key": "a+b.jpg"}}}]}

    item = read(MINIO, {"EventName": "s3:ObjectCreated:Put", **event})
    assert item == Item("pictures/a b.jpg", uri="s3://pictures/a b.jpg")
    deletion = read(MINIO, {"EventName": "s3:ObjectRemoved:Delete", **event})
    assert deletion == Deletion("pictures/a b.jpg")


def change(op: str, before: Any, after: Any) -> dict[str, Any]:
    """A change event of Debezium's connector for PostgreSQL."""
    source = {"connector": "postgresql", "db": "shop", "table": "products", "lsn": 24023128}
    payload = {"before": before, "after": after, "source": source, "op": op, "ts_ms": 1559033904863}
    return {"schema": {"type": "struct", "fields": []}, "payload": {**payload, "transaction": None}}


OLD, NEW = {"id": 7, "picture_url": "s3://b/old"}, {"id": 7, "picture_url": "s3://b/new"}


@pytest.mark.parametrize(("op", "before"), [("c", None), ("r", None), ("u", OLD), ("u", None)])
def test_debezium(op: str, before: Any) -> None:
    assert read(DEBEZIUM, change(op, before, NEW)) == Item("7", uri="s3://b/new")


def test_debezium_deletes() -> None:
    assert read(DEBEZIUM, change("d", OLD, None)) == Deletion("7")
    # The tombstone that follows has only the key.
    assert read(DEBEZIUM, None) == Deletion('{"id": 7}')


def test_a_debezium_event_without_a_row() -> None:
    with pytest.raises(ItemError) as caught:
        read(DEBEZIUM, change("t", None, None))
    assert caught.value.code == Code.MESSAGE_INCOMPLETE


def test_cloud_events() -> None:
    event = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "product.created"}
    attributes = {"source": "/shop", "type": "product.created"}

    by_reference = {**event, "subject": "s-1", "data": {"picture_url": "s3://b/k"}}
    inline = {**event, "subject": "s-1", "data_base64": "YWJj"}

    assert read(CLOUD_EVENT, by_reference) == Item("s-1", uri="s3://b/k", attributes=attributes)
    assert read(CLOUD_EVENT, inline) == Item("s-1", b"abc", attributes=attributes)


def test_the_delete_of_the_deletes_page() -> None:
    (reader,) = find_readers("deletes.md", "Messages that delete")
    assert read(reader, change("d", OLD, None)) == Deletion('{"id": 7}')
