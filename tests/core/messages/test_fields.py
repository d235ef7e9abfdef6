"""Fields found by JMESPath in messages of any shape, and what becomes of those they do not fit."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstream_core.errors import Code, ItemError, SetupError, Stage
from embedstream_core.messages.fields import FieldExpressions
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.records import Deletion, Item
from embedstream_core.settings import MessageFormat, ModalityName

POSITION = "images-0-7"
PRODUCT = {
    "sku": 4711,
    "image": {"url": "s3://b/k", "bytes": None},
    "images": [{"url": "s3://b/0"}, {"url": "s3://b/1"}],
    "caption": "a red bicycle",
    "store": {"name": "Nord", "open": True},
}
FIELDS = FieldExpressions(id="sku", uri="image.url", text="caption", data="image.bytes")


def read(
    document: Any,
    fields: FieldExpressions | None = FIELDS,
    *,
    message_format: MessageFormat = "auto",
    key: bytes | None = b"key",
    accepts: Sequence[ModalityName] = ("image",),
) -> Item | Deletion:
    value = json.dumps(document).encode()
    message = Message(value, POSITION, key, [("lane", b"3"), ("shop", b"header")])
    return MessageReader(format=message_format, fields=fields).read(message, accepts=accepts)


def refuse(document: Any, fields: FieldExpressions = FIELDS, **options: Any) -> ItemError:
    with pytest.raises(ItemError) as caught:
        read(document, fields, **options)
    assert caught.value.stage == Stage.MESSAGE
    return caught.value


# Where the fields are.


def test_fields_of_another_shape() -> None:
    item = read(PRODUCT)

    attributes = {"lane": "3", "shop": "header", "text": "a red bicycle"}
    assert item == Item("4711", uri="s3://b/k", attributes=attributes)


def test_what_no_expression_names_is_left_out() -> None:
    fields = FieldExpressions(uri="image.url")
    document = {**PRODUCT, "id": "top", "uri": "top", "data": "top", "text": "top"}

    attributes = {"lane": "3", "shop": "header"}
    assert read(document, fields) == Item("key", uri="s3://b/k", attributes=attributes)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("{shop: store.name, open: store.open}", {"shop": "Nord", "open": "true"}),
        ("store", {"shop": "header", "name": "Nord", "open": "true"}),
        ("{list: images[].url}", {"shop": "header", "list": '["s3://b/0", "s3://b/1"]'}),
        ("nowhere", {"shop": "header"}),
    ],
)
def test_the_members_of_an_object_become_attributes(
    expression: str, expected: dict[str, str]
) -> None:
    item = read(PRODUCT, FieldExpressions(uri="image.url", attributes=expression))
    assert item.attributes == {"lane": "3", **expected}


def test_the_content_is_not_an_attribute_too() -> None:
    document = {"payload": {"image": "YWJjZA==", "none": None, "n": 1, "empty": ""}}
    fields = FieldExpressions(data="payload.image", attributes="payload")
    of_another = FieldExpressions(data="payload.empty", uri="'u'", attributes="payload")

    item = read(document, fields)

    assert isinstance(item, Item)
    assert item.content == b"abcd"
    assert item.attributes.keys() == {"lane", "shop", "none", "n", "empty"}
    assert read(document, of_another).attributes.keys() == {*item.attributes, "image"}


@pytest.mark.parametrize(
    ("expression", "image_id"),
    [
        ("sku", "4711"),
        ("store.name", "Nord"),
        ("[store.name, sku]", '["Nord", 4711]'),
        ("join('/', [store.name, to_string(sku)])", "Nord/4711"),
        ("nowhere || sku", "4711"),
        ("nowhere", "key"),
        ("image.bytes", "key"),
        ("''", "key"),
        ("`0`", "0"),
        ("store.open", "true"),
    ],
)
def test_an_id_is_any_value(expression: str, image_id: str) -> None:
    fields = FieldExpressions(id=expression, uri="image.url")
    assert read(PRODUCT, fields).image_id == image_id


@pytest.mark.parametrize(
    "expression", ["images[0].url", "images[-1].url", "images[?url].url | [0]"]
)
def test_an_element_of_an_array(expression: str) -> None:
    item = read(PRODUCT, FieldExpressions(uri=expression))
    assert isinstance(item, Item)
    assert item.uri in ("s3://b/0", "s3://b/1")


@pytest.mark.parametrize("message_format", ["auto", "json"])
def test_a_document_may_be_an_array(message_format: MessageFormat) -> None:
    fields = FieldExpressions(uri="[0].url")
    item = read(PRODUCT["images"], fields, message_format=message_format)
    assert isinstance(item, Item)
    assert item.uri == "s3://b/0"


def test_a_text_where_texts_are_accepted() -> None:
    fields = FieldExpressions(text="caption")
    item = read(PRODUCT, fields, accepts=("text",))
    assert isinstance(item, Item)
    assert (item.content, item.media_type) == (b"a red bicycle", "text/plain")
    assert read({"caption": ""}, fields, accepts=("text",)).attributes == item.attributes


def test_the_format_bytes_has_no_fields() -> None:
    item = read(PRODUCT, message_format="bytes")
    assert isinstance(item, Item)
    assert item.content == json.dumps(PRODUCT).encode()


# Messages that the expressions do not fit.


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "it has none of them"),
        ({"image": {"url": "", "bytes": ""}}, "it has none of them"),
        ({"image": "s3://b/k"}, "it has none of them"),
        ({"image": {"url": "u", "bytes": "YQ=="}}, "it has 'uri' and 'data'"),
    ],
)
def test_not_one_content_is_incomplete(document: Any, said: str) -> None:
    error = refuse(document)

    assert error.code == Code.MESSAGE_INCOMPLETE
    assert "'uri' (image.url), 'data' (image.bytes), 'text' (caption); " in error.message
    assert said in error.message


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("images[].url", "is an array, not a string, and has 2 elements"),
        ("nowhere || `[]`", "is an array, not a string, and has 0 elements"),
        ("sku", "the field 'uri' (sku) is a number, not a string"),
        ("image", "is an object, not a string"),
        ("store.open", "is a boolean, not a string"),
    ],
)
def test_a_field_of_another_type_is_malformed(expression: str, said: str) -> None:
    error = refuse(PRODUCT, FieldExpressions(uri=expression))

    assert error.code == Code.MESSAGE_MALFORMED
    assert said in error.message
    assert ("images[0].url" in error.message) == ("array" in said)


@pytest.mark.parametrize("expression", ["images", "caption", "sku"])
def test_attributes_that_are_no_object_are_malformed(expression: str) -> None:
    error = refuse(PRODUCT, FieldExpressions(uri="image.url", attributes=expression))

    assert error.code == Code.MESSAGE_MALFORMED
    assert f"the field 'attributes' ({expression}) is a" in error.message


def test_an_expression_that_fails_on_a_message_is_that_messages_failure() -> None:
    fields = FieldExpressions(uri="join('/', images[].url)")

    assert read(PRODUCT, fields) == Item(
        "key", uri="s3://b/0/s3://b/1", attributes=read(PRODUCT, fields).attributes
    )
    error = refuse({"images": [{"url": 7}]}, fields)
    assert error.code == Code.MESSAGE_MALFORMED
    assert "message.fields.uri fails on this message: join() takes array-string, " in error.message


def test_a_document_that_was_encoded_twice_is_malformed() -> None:
    assert "encoded twice" in refuse(json.dumps(PRODUCT)).message


# Deletes.

CHANGES = FieldExpressions(
    id="(payload.after || payload.before).id",
    uri="payload.after.image_url",
    delete="payload.op == 'd'",
)


def test_a_message_that_says_so_is_a_deletion() -> None:
    update = {"payload": {"op": "u", "before": {"id": 1}, "after": {"id": 1, "image_url": "u"}}}
    delete = {"payload": {"op": "d", "before": {"id": 1}, "after": None}}
    attributes = {"lane": "3", "shop": "header"}

    assert read(update, CHANGES) == Item("1", uri="u", attributes=attributes)
    assert read(delete, CHANGES) == Deletion("1", attributes)
    parts = replace(CHANGES, uri="join('/', payload.after.parts)")
    assert read(delete, parts) == Deletion("1", attributes)
    keyless = refuse(delete, CHANGES, key=None)
    assert keyless.code == Code.MESSAGE_INCOMPLETE
    assert "no key to delete" in keyless.message
    unsaid = refuse(delete, replace(CHANGES, delete=None))
    assert unsaid.code == Code.MESSAGE_INCOMPLETE
    assert "a Debezium delete, which needs message.fields.delete" in unsaid.message


@pytest.mark.parametrize("value", [1, 0, "true", [True], {}])
def test_a_delete_that_is_no_boolean_is_malformed(value: object) -> None:
    fields = FieldExpressions(uri="uri", delete="gone")
    error = refuse({"uri": "u", "gone": value}, fields)

    assert error.code == Code.MESSAGE_MALFORMED
    assert "the field 'delete' (gone) is a" in error.message
    assert isinstance(read({"uri": "u", "gone": False}, fields), Item)
    assert isinstance(read({"uri": "u"}, fields), Item)


# Expressions that are wrong.


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("image.", "position 6, marked by '>>>' in 'image.>>>'"),
        ("image..url", "position 6, marked by '>>>' in 'image.>>>.url'"),
        ("images[0", "position 8"),
        ("image-url", "position 5, marked by '>>>' in 'image>>>-url'"),
        ("image.#", "position 6"),
        ("'open", "position 0"),
        ("", "cannot be empty"),
        ("lower(sku)", "unknown function 'lower'; known: abs, avg, "),
        ("images[].{url: lower(url)}", "unknown function 'lower'"),
        ("join(images)", "function 'join' has 1 arguments and takes 2"),
        ("sort_by(images, &length(url, url))", "function 'length' has 2 arguments and takes 1"),
        ("&sku", "'&' makes an argument of a function, not a value"),
        ("[sku, &sku]", "'&' makes an argument"),
        ("merge()", "function 'merge' has 0 arguments and takes 1 or more"),
        ("(" * 5000 + "a" + ")" * 5000, "nested too deeply"),
    ],
)
def test_a_wrong_expression_is_refused(expression: str, said: str) -> None:
    with pytest.raises(SetupError) as caught:
        FieldExpressions(uri="image.url", attributes=expression)

    message = str(caught.value)
    assert f"the expression {expression!r} of message.fields.attributes is not JMESPath" in message
    assert said in message


def test_content_must_be_named() -> None:
    with pytest.raises(SetupError, match="names no content"):
        FieldExpressions(id="sku", attributes="store")


# Documents of a schema registry.


@dataclass(frozen=True)
class Known:
    """Returns the document with the number that follows the schema id."""

    documents: tuple[Any, ...]

    def decode(self, value: bytes, *, schema_header: bytes | None = None) -> Any:
        assert value.startswith(b"\0")
        return self.documents[value[5]]


def decode(
    document: Any,
    fields: FieldExpressions | None = None,
    *,
    message_format: MessageFormat = "auto",
    schema_id: int = 100_001,
    accepts: Sequence[ModalityName] = ("image",),
) -> Item | Deletion:
    reader = MessageReader(format=message_format, fields=fields, decoder=Known((document,)))
    value = struct.pack(">bIb", 0, schema_id, 0)
    return reader.read(Message(value, POSITION, b"key"), accepts=accepts)


@pytest.mark.parametrize("schema_id", [1, 65_536, 100_001, 131_072, 2**31 - 1])
@pytest.mark.parametrize("message_format", ["auto", "json"])
def test_values_in_the_wire_format_are_decoded(
    message_format: MessageFormat, schema_id: int
) -> None:
    item = decode({"id": 7, "uri": "u"}, message_format=message_format, schema_id=schema_id)
    assert item == Item("7", uri="u")


def test_other_values_are_not_decoded() -> None:
    reader = MessageReader(decoder=Known(()))
    for value in (
        b"\0\0\0\x1cftypavif",
        b"\x89PNG",
        b"",
        b"\0",
        b"\0\0\0\0\0\0",
        b"\0\xff\xff\xff\xff\0",
    ):
        assert reader.read(Message(value, POSITION), accepts=("image",)) == Item(POSITION, value)
    assert decode({}, message_format="bytes") == Item("key", struct.pack(">bIb", 0, 100_001, 0))
    assert read(PRODUCT) == replace(
        MessageReader(fields=FIELDS, decoder=Known(())).read(
            Message(json.dumps(PRODUCT).encode(), POSITION, b"key"), accepts=("image",)
        ),
        attributes=read(PRODUCT).attributes,
    )


def test_bytes_are_taken_as_they_are() -> None:
    picture = b"\xff\xd8\0"
    attributes = {"shop": "Nord"}

    assert decode({"data": picture, "shop": "Nord"}) == Item("key", picture, attributes=attributes)
    found = decode({"a": [{"b": picture}]}, FieldExpressions(data="a[0].b", attributes="a[0]"))
    assert found == Item("key", picture)
    assert decode(picture) == Item("key", picture)
    assert decode("words", accepts=("text",)) == Item("key", b"words", media_type="text/plain")


@pytest.mark.parametrize("document", ["words", None, 7, [1], {"uri": b"u"}, {"text": b"a"}])
def test_other_documents_are_failures(document: object) -> None:
    with pytest.raises(ItemError) as caught:
        decode(document)
    assert caught.value.code == Code.MESSAGE_MALFORMED


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\0\xff", "AP8="),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01-31T12:00:00+00:00"),
        (date(2026, 1, 31), "2026-01-31"),
        (Decimal("12.50"), "12.50"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    ],
)
def test_values_that_json_does_not_have_are_texts(value: object, text: str) -> None:
    item = decode({"uri": "u", "one": value, "many": [value, {"a": value}]})

    assert item.attributes == {"one": text, "many": json.dumps([text, {"a": text}])}
    if not isinstance(value, bytes):
        assert decode({"uri": "u", "id": value}).image_id == text
    assert decode({"uri": "u", "id": b"\0\xff"}).image_id == "0x00ff"
    assert decode({"uri": "u", "id": b"sku"}).image_id == "sku"


# Workers.


def test_a_reader_can_be_sent_to_workers() -> None:
    reader = MessageReader("json", "id", "int64", CHANGES, Known(()))
    reader.read(Message(b'{"payload": {"after": {"image_url": "u"}}}', POSITION), accepts=())

    assert pickle.loads(pickle.dumps(reader)) == reader


# Any document, any expression.

names = st.sampled_from(["a", "b", "id", "uri"])
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)
FUNCTIONS = "avg ceil floor keys length max merge not_null reverse sort sum to_array to_number type"
functions = st.sampled_from(FUNCTIONS.split())
paths = st.recursive(
    names | st.sampled_from(["@", "*", "[0]", "[]", "[*]", "[::-1]", "'x'", "`1`", "`[1, {}]`"]),
    lambda inner: st.one_of(
        st.builds("({}).{}".format, inner, names),
        st.builds("({})[]".format, inner),
        st.builds("({}) | ({})".format, inner, inner),
        st.builds(
            "({}) {} ({})".format, inner, st.sampled_from(["<", "==", "!=", "||", "&&"]), inner
        ),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{a: {}, b: {}}}".format, inner, inner),
        st.builds("({})[?{}]".format, inner, inner),
        st.builds("!({})".format, inner),
        st.builds("{}({})".format, functions, inner),
        st.builds("sort_by({}, &({}))".format, inner, inner),
        st.builds("contains({}, {})".format, inner, inner),
    ),
    max_leaves=6,
)


@given(
    document=documents,
    image_id=st.none() | paths,
    uri=st.just("'u'") | paths,
    data=st.none() | paths,
    attributes=st.none() | paths | st.builds("{{a: {}, b: @}}".format, paths),
    delete=st.none() | st.builds("({}) == ({})".format, paths, paths),
    accepts=st.sampled_from([("image",), ("text",), ("image", "text", "audio")]),
)
def test_any_document_and_expressions_make_an_item_or_a_failure(
    document: object, image_id: str | None, accepts: Sequence[ModalityName], **others: str | None
) -> None:
    fields = FieldExpressions(id=image_id, **others)
    with contextlib.suppress(ItemError):
        item = read(document, fields, message_format="json", accepts=accepts)
        texts = [item.image_id, *item.attributes, *item.attributes.values()]
        assert "".join(texts).encode()


@given(st.text("ab.[]{}()@*&|,:=!<'`\"\\0- ", max_size=8) | st.text(max_size=4) | paths)
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    with contextlib.suppress(SetupError, ItemError):
        read({"a": [1, {"b": None}]}, FieldExpressions(id=text, uri="'u'"))


HOSTILE = {
    "deep": b'{"a":' * 900 + b"1" + b"}" * 900,
    "deep lists": b"[" * 900 + b"]" * 900,
    "long": json.dumps({"a": [{"a": str(n)} for n in range(20_000)]}).encode(),
    "equal": json.dumps({"a": [[1] * 100] * 200, "b": [[1] * 100] * 200}).encode(),
    "huge number": b'{"a": [1e308, 1e308, ' + b"9" * 4000 + b"]}",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "expression",
    [
        ".".join("a" * 200),
        "a[].a[].a[]",
        "a == b",
        "sum(a)",
        "to_string(@)",
        "*.*.*.*",
        "sort_by(a, &a)",
    ],
)
def test_a_hostile_document_neither_hangs_nor_exhausts_the_stack(
    name: str, expression: str
) -> None:
    fields = FieldExpressions(uri="u", id=expression, attributes="{a: " + expression + "}")

    with contextlib.suppress(ItemError):
        MessageReader(format="json", fields=fields).read(
            Message(HOSTILE[name], POSITION), accepts=("image",)
        )
