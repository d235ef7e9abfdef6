"""The section `message`: its reader, and expressions that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config_files import load, problems
from embedstream_core.messages.fields import FieldExpressions
from embedstream_core.messages.parse import MessageReader


def test_the_fields_of_messages_make_their_reader(tmp_path: Path) -> None:
    message = {"key": "int64", "fields": {"id": "sku", "uri": "images[0].url"}}
    environment = {"EMBEDSTREAM_MESSAGE__FIELDS__DELETE": "op == 'd'"}
    override = "message.fields.attributes={shop: store.name}"

    config = load(tmp_path, {"message": message}, override, environment=environment)

    fields = FieldExpressions(
        "sku", "images[0].url", attributes="{shop: store.name}", delete="op == 'd'"
    )
    assert config.message.build_reader() == MessageReader(key="int64", fields=fields)
    assert load(tmp_path).message.build_reader() == MessageReader()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"uri": "image..url"},
            "  message.fields: the expression 'image..url' of message.fields.uri is not JMESPath: "
            "it is wrong at position 6, marked by '>>>' in 'image.>>>.url'",
        ),
        (
            {"id": "sku"},
            "  message.fields: message.fields names no content: give an expression for 'uri', "
            "'data' or 'text'",
        ),
        (
            {"ur": "image.url"},
            "  message.fields.ur: unknown key; did you mean 'uri'? known: id, uri, data, text, "
            "attributes, delete",
        ),
    ],
)
def test_wrong_fields_are_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    (_, line) = problems(tmp_path, {"message": {"fields": fields}})
    assert line == said


def test_fields_of_bytes_are_refused(tmp_path: Path) -> None:
    message = {"format": "bytes", "fields": {"uri": "image.url"}}
    (_, line) = problems(tmp_path, {"message": message})
    assert line == "  message: fields are found in documents: leave them out, or format: bytes"
