"""Kafka messages as items: every form that is allowed, and what is said of the others."""

from __future__ import annotations

import base64
import bisect
import contextlib
import json
from collections.abc import Sequence

import pytest

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.message import Message, MessageFormat, parse_message
from embedstream_core.records import Item

POSITION = "images-0-7"
IMAGE = b"\x89PNG\r\n\x1a\n\0\xff"
REFERENCE = b'{"uri": "s3://b/k"}'

Headers = Sequence[tuple[str, bytes | None]]


def parsed(
    value: bytes,
    message_format: MessageFormat = "json",
    *,
    key: bytes | None = None,
    headers: Headers = (),
) -> Item:
    message = Message(value, POSITION, key, headers)
    return parse_message(message, message_format=message_format, id_header="image-id")


def refused(value: bytes, message_format: MessageFormat = "json") -> ItemError:
    with pytest.raises(ItemError) as caught:
        parsed(value, message_format)
    assert caught.value.stage == Stage.MESSAGE
    return caught.value


def malformed(value: bytes, message_format: MessageFormat = "json") -> str:
    error = refused(value, message_format)
    assert error.code == Code.MESSAGE_MALFORMED
    return error.message


# The image id.


@pytest.mark.parametrize(
    ("value", "header", "key", "expected"),
    [
        (b'{"id": "json", "uri": "u"}', b"header", b"key", "json"),
        (b'{"id": "json", "uri": "u"}', None, None, "json"),
        (b'{"id": null, "uri": "u"}', b"header", b"key", "header"),
        (b'{"uri": "u"}', b"header", b"key", "header"),
        (b'{"uri": "u"}', b"", b"key", "key"),
        (b'{"uri": "u"}', None, b"key", "key"),
        (b'{"uri": "u"}', None, b"", POSITION),
        (b'{"uri": "u"}', None, None, POSITION),
        (IMAGE, b"header", b"key", "header"),
        (IMAGE, None, b"key", "key"),
        (IMAGE, None, None, POSITION),
    ],
)
def test_the_id_is_the_first_of_json_header_key_and_position(
    value: bytes, header: bytes | None, key: bytes | None, expected: str
) -> None:
    item = parsed(value, "auto", key=key, headers=[("image-id", header)])

    assert item.image_id == expected
    assert item.attributes == {}


@pytest.mark.parametrize(
    ("json_id", "expected"),
    [("7", "7"), ("0", "0"), ("false", "false"), ("[1, 2]", "[1, 2]")],
)
def test_an_id_that_is_no_string_is_its_json_text(json_id: str, expected: str) -> None:
    assert parsed(f'{{"id": {json_id}, "uri": "u"}}'.encode()).image_id == expected


def test_only_the_named_header_is_the_id() -> None:
    item = parsed(IMAGE, "image", headers=[("id", b"other"), ("Image-Id", b"case")])

    assert item.image_id == POSITION
    assert item.attributes == {"id": "other", "Image-Id": "case"}


def test_a_key_that_is_not_utf8_gets_replacement_characters() -> None:
    assert parsed(IMAGE, "image", key=b"a\xff").image_id == "a\ufffd"


# Formats.


@pytest.mark.parametrize("message_format", ["image", "auto"])
@pytest.mark.parametrize("value", [IMAGE, b"", b"[1]", b'"text"', b" \t\r\n", b"\0{}"])
def test_what_is_no_object_is_an_image(value: bytes, message_format: MessageFormat) -> None:
    item = parsed(value, message_format)

    assert (item.content, item.uri) == (value, None)


def test_an_object_is_an_image_where_images_are_asked_for() -> None:
    assert parsed(REFERENCE, "image").content == REFERENCE


@pytest.mark.parametrize("message_format", ["json", "auto"])
@pytest.mark.parametrize("before", [b"", b" ", b"\n", b" \t\r\n" * 4])
def test_whitespace_before_an_object_does_not_matter(
    before: bytes, message_format: MessageFormat
) -> None:
    item = parsed(before + REFERENCE, message_format)

    assert (item.content, item.uri) == (None, "s3://b/k")


def test_what_begins_like_an_object_is_not_taken_for_an_image() -> None:
    assert "not JSON" in malformed(b"{" + IMAGE, "auto")


@pytest.mark.parametrize("content", [IMAGE, b"", bytes(range(256))])
def test_data_is_base64(content: bytes) -> None:
    data = base64.b64encode(content).decode()
    item = parsed(json.dumps({"data": data}).encode())

    assert (item.content, item.uri) == (content, None)


@pytest.mark.parametrize("other", [b'"uri": null, "data": "YQ=="', b'"uri": "u", "data": null'])
def test_null_is_as_good_as_absent(other: bytes) -> None:
    item = parsed(b"{" + other + b"}")

    assert (item.uri is None) != (item.content is None)
    assert item.attributes == {}


# Attributes.


@pytest.mark.parametrize("value", [IMAGE, REFERENCE])
def test_headers_become_attributes(value: bytes) -> None:
    headers = [("shop", b"7"), ("name", "Käse".encode()), ("empty", b"")]

    assert parsed(value, "auto", headers=headers).attributes == {
        "shop": "7",
        "name": "Käse",
        "empty": "",
    }


def test_a_header_without_a_value_is_left_out() -> None:
    assert parsed(IMAGE, "image", headers=[("shop", None)]).attributes == {}


def test_a_header_that_is_not_utf8_gets_replacement_characters() -> None:
    assert parsed(IMAGE, "image", headers=[("shop", b"a\xffb")]).attributes == {"shop": "a\ufffdb"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"text"', "text"),
        ('""', ""),
        ('"K\\u00e4se"', "Käse"),
        ("7", "7"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1.5", "1.5"),
        ("true", "true"),
        ("null", "null"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ('["ä", {"b": 1}]', '["ä", {"b": 1}]'),
    ],
)
def test_a_json_field_becomes_an_attribute(value: str, expected: str) -> None:
    item = parsed(f'{{"uri": "u", "shop": {value}}}'.encode())

    assert item.attributes == {"shop": expected}


def test_json_wins_over_a_header_of_the_same_name() -> None:
    headers = [("shop", b"header"), ("lane", b"3")]
    item = parsed(b'{"uri": "u", "shop": "json"}', headers=headers)

    assert item.attributes == {"shop": "json", "lane": "3"}


def test_headers_named_like_json_fields_do_not_stand_in_for_them() -> None:
    error = refused(b"{}")
    item = parsed(REFERENCE, headers=[("uri", b"header"), ("data", b"header")])

    assert error.code == Code.MESSAGE_INCOMPLETE
    assert item.uri == "s3://b/k"
    assert item.attributes == {"uri": "header", "data": "header"}


# Lone surrogates: valid in JSON's escapes, refused by Arrow and so by the whole micro-batch.


@pytest.mark.parametrize(
    ("fields", "image_id", "attributes"),
    [
        ('"id": "a\\ud800b"', "a?b", {}),
        ('"shop": "\\udfff"', POSITION, {"shop": "?"}),
        ('"shop": ["\\ud800"]', POSITION, {"shop": '["?"]'}),
        ('"shop": "\\ud83d\\ude00"', POSITION, {"shop": "\U0001f600"}),
    ],
)
def test_lone_surrogates_are_replaced(
    fields: str, image_id: str, attributes: dict[str, str]
) -> None:
    item = parsed(f'{{"uri": "u", {fields}}}'.encode())

    assert item.image_id == image_id
    assert item.attributes == attributes


def not_utf8(item: Item) -> list[str]:
    texts = [item.image_id, item.uri or "", *item.attributes.keys(), *item.attributes.values()]
    return [text for text in texts if text != text.encode("utf-8", "replace").decode("utf-8")]


@pytest.mark.parametrize(
    "value",
    [
        b'{"uri": "u", "\\ud800": "name"}',
        b'{"uri": "u", "nested": {"\\ud800": 1}}',
        b'{"uri": "s3://b/\\ud800"}',
        b'{"uri": "s3://b/\xed\xa0\x80"}',
    ],
    ids=["name", "nested-name", "uri", "uri-as-bytes"],
)
def test_no_text_of_an_item_has_lone_surrogates(value: bytes) -> None:
    with contextlib.suppress(ItemError):
        assert not_utf8(parsed(value)) == []


# What is wrong, and what is said of it.


@pytest.mark.parametrize("value", [b"{}", b'{"id": "a"}', b'{"uri": null, "data": null}'])
def test_neither_uri_nor_data_is_incomplete(value: bytes) -> None:
    error = refused(value)

    assert error.code == Code.MESSAGE_INCOMPLETE
    assert "exactly one of the fields 'uri' and 'data'" in error.message


@pytest.mark.parametrize("value", [b'{"uri": "u", "data": "YQ=="}', b'{"uri": "", "data": ""}'])
def test_both_uri_and_data_are_incomplete(value: bytes) -> None:
    error = refused(value)

    assert error.code == Code.MESSAGE_INCOMPLETE
    assert "exactly one of the fields 'uri' and 'data'" in error.message


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"[]", "list"),
        (b'[{"uri": "u"}]', "list"),
        (b'"uri"', "str"),
        (b"7", "int"),
        (b"NaN", "float"),
        (b"null", "NoneType"),
    ],
)
def test_json_that_is_no_object_is_malformed(value: bytes, kind: str) -> None:
    assert f"a {kind}, not an object" in malformed(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "Expecting value"),
        (b" ", "Expecting value"),
        (IMAGE, "invalid start byte"),
        (b'{"uri": "u"', "line 1 column"),
        (b'{"uri": "u"} {}', "Extra data"),
        (b'{"uri": "u",}', "line 1 column"),
        (b"{'uri': 'u'}", "double quotes"),
        (b'{"uri": "\xff"}', "can't decode byte 0xff in position 9"),
        (b'{"uri": "u", "shop": ' + b"1" * 5_000 + b"}", "4300 digits"),
    ],
    ids=["empty", "blank", "image", "cut", "two", "comma", "quotes", "utf8", "digits"],
)
def test_what_is_not_json_is_malformed(value: bytes, reason: str) -> None:
    message = malformed(value)

    assert "the value is not JSON in UTF-8" in message
    assert reason in message


@pytest.mark.parametrize("data", ["YQ", "Y", "Y Q==", "YQ==\n", "-_-_", "YQ==YQ==", "ä", "a,YQ=="])
def test_data_that_is_no_base64_is_malformed(data: str) -> None:
    assert "the field 'data' is not base64: " in malformed(json.dumps({"data": data}).encode())


@pytest.mark.parametrize("name", ["uri", "data"])
@pytest.mark.parametrize(
    ("value", "kind"), [(7, "int"), (False, "bool"), ([], "list"), ({}, "dict")]
)
def test_a_field_of_another_type_is_malformed(name: str, value: object, kind: str) -> None:
    message = malformed(json.dumps({name: value}).encode())

    assert f"the field '{name}' is a {kind}, not a string" in message


# Nesting.


def nested(depth: int) -> bytes:
    return b'{"uri": "u", "shop": ' + b"[" * depth + b"]" * depth + b"}"


def is_refused(depth: int) -> bool:
    try:
        parsed(nested(depth))
    except ItemError as error:
        return error.code == Code.MESSAGE_MALFORMED
    return False


def test_nesting_of_a_hundred_is_read() -> None:
    assert parsed(nested(100)).attributes == {"shop": "[" * 100 + "]" * 100}


@pytest.mark.parametrize("value", [nested(200_000), b"[" * 200_000, b'{"a":' * 200_000])
def test_endless_nesting_is_malformed(value: bytes) -> None:
    assert "recursion" in malformed(value)


def test_no_depth_of_nesting_raises_anything_else() -> None:
    least = bisect.bisect_left(range(200_000), True, key=is_refused)
    around = [is_refused(depth) for depth in range(least - 20, least + 20)]

    assert around == sorted(around)
    assert set(around) == {False, True}
