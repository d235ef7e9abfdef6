"""Kafka messages as items: every form that is allowed, and the errors of the others."""

from __future__ import annotations

import base64
import bisect
import contextlib
import json
import struct
import time
from collections.abc import Sequence
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.messages.parse import Message, MessageReader
from embedstream_core.records import Deletion, Item
from embedstream_core.settings import MessageFormat, ModalityName

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
    accepts: Sequence[ModalityName] = ("image",),
) -> Item:
    message = Message(value, POSITION, key, headers)
    item = MessageReader(format=message_format).read(message, accepts=accepts)
    assert isinstance(item, Item)
    return item


def refused(
    value: bytes,
    message_format: MessageFormat = "json",
    *,
    accepts: Sequence[ModalityName] = ("image",),
) -> ItemError:
    with pytest.raises(ItemError) as caught:
        parsed(value, message_format, accepts=accepts)
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


@pytest.mark.parametrize("message_format", ["auto", "bytes", "json"])
@pytest.mark.parametrize(
    ("header", "key", "expected"),
    [
        (b"header", b"key", "header"),
        (None, b"key", "key"),
        (b"", b"key", "key"),
        (None, b"\xff\0", "0xff00"),
        (None, b"", POSITION),
        (None, None, POSITION),
    ],
)
def test_a_message_without_a_value_is_a_deletion(
    message_format: MessageFormat, header: bytes | None, key: bytes | None, expected: str
) -> None:
    headers = [("image-id", header), ("shop", b"42"), ("none", None), ("latin", b"\xe4")]
    message = Message(None, POSITION, key, headers)

    found = MessageReader(format=message_format).read(message, accepts=("image",))

    assert found == Deletion(expected, {"shop": "42", "latin": "\ufffd"})


def test_an_empty_value_is_no_deletion() -> None:
    assert parsed(b"", "auto", key=b"key") == Item("key", content=b"")


@pytest.mark.parametrize(
    ("json_id", "expected"),
    [("7", "7"), ("0", "0"), ("false", "false"), ("[1, 2]", "[1, 2]")],
)
def test_an_id_of_another_type_is_its_json_text(json_id: str, expected: str) -> None:
    assert parsed(f'{{"id": {json_id}, "uri": "u"}}'.encode()).image_id == expected


def test_only_the_named_header_is_the_id() -> None:
    item = parsed(IMAGE, "bytes", headers=[("id", b"other"), ("Image-Id", b"case")])

    assert item.image_id == POSITION
    assert item.attributes == {"id": "other", "Image-Id": "case"}


@pytest.mark.parametrize("place", ["key", "header"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Grüße 1".encode(), "Grüße 1"),
        (b" a ", " a "),
        (b"0x41", "0x41"),
        (struct.pack(">q", 133), "0x0000000000000085"),
        (struct.pack(">q", 134), "0x0000000000000086"),
        (struct.pack(">q", 5), "0x0000000000000005"),
        (struct.pack("<q", 65), "0x4100000000000000"),
        (struct.pack(">d", 1.5), "0x3ff8000000000000"),
        (bytes(range(128, 144)), "0x808182838485868788898a8b8c8d8e8f"),
        (b"a\xff", "0x61ff"),
        (b"a\nb", "0x610a62"),
        (b"\x7f", "0x7f"),
        ("\x85".encode(), "0xc285"),
        (b"\xed\xa0\x80", "0xeda080"),
    ],
)
def test_a_binary_id_is_hexadecimal(place: str, value: bytes, expected: str) -> None:
    key, headers = (value, []) if place == "key" else (b"key", [("image-id", value)])

    assert parsed(IMAGE, "bytes", key=key, headers=headers).image_id == expected


@given(st.lists(st.binary(min_size=8, max_size=8), min_size=2, max_size=2, unique=True))
def test_two_keys_have_two_ids(keys: list[bytes]) -> None:
    assert len({parsed(IMAGE, "bytes", key=key).image_id for key in keys}) == 2


# Formats.


@pytest.mark.parametrize("message_format", ["bytes", "auto"])
@pytest.mark.parametrize("value", [IMAGE, b"", b"[1", b'"text', b" \t\r\n", b"\0{}"])
def test_a_value_that_is_not_an_object_is_content(
    value: bytes, message_format: MessageFormat
) -> None:
    item = parsed(value, message_format)

    assert (item.content, item.uri) == (value, None)


def test_an_object_is_content_in_the_format_bytes() -> None:
    assert parsed(REFERENCE, "bytes").content == REFERENCE


@pytest.mark.parametrize("message_format", ["json", "auto"])
@pytest.mark.parametrize("before", [b"", b" ", b"\n", b" \t\r\n" * 4])
def test_whitespace_before_an_object_does_not_matter(
    before: bytes, message_format: MessageFormat
) -> None:
    item = parsed(before + REFERENCE, message_format)

    assert (item.content, item.uri) == (None, "s3://b/k")


def test_a_value_that_begins_like_an_object_is_not_an_image() -> None:
    assert "not JSON" in malformed(b"{" + IMAGE, "auto")


@pytest.mark.parametrize("content", [IMAGE, bytes(range(256))])
def test_data_is_base64(content: bytes) -> None:
    data = base64.b64encode(content).decode()
    item = parsed(json.dumps({"data": data}).encode())

    assert (item.content, item.uri) == (content, None)


@pytest.mark.parametrize(
    "other",
    [
        *[b'"uri": null, "data": "YQ=="', b'"uri": "u", "data": null'],
        *[b'"uri": "", "data": "YQ=="', b'"uri": "u", "data": ""'],
    ],
)
def test_null_and_empty_count_as_absent(other: bytes) -> None:
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
    assert parsed(IMAGE, "bytes", headers=[("shop", None)]).attributes == {}


def test_a_header_that_is_not_utf8_gets_replacement_characters() -> None:
    assert parsed(IMAGE, "bytes", headers=[("shop", b"a\xffb")]).attributes == {"shop": "a\ufffdb"}


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


def test_headers_do_not_replace_json_fields_of_the_same_name() -> None:
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
        b'{"text": "a", "shop": "\\ud800"}',
    ],
    ids=["name", "nested-name", "uri", "uri-as-bytes", "beside-text"],
)
def test_no_text_of_an_item_has_lone_surrogates(value: bytes) -> None:
    with contextlib.suppress(ItemError):
        assert not_utf8(parsed(value)) == []


# Messages that are wrong, and their errors.


@pytest.mark.parametrize(
    "value",
    [
        *[b"{}", b'{"id": "a"}', b'{"uri": null, "data": null}', b'{"uri": "", "data": ""}'],
        *[b'{"data": ""}', b'{"uri": ""}', b'{"uri": "", "data": null}', b'{"text": ""}'],
    ],
)
def test_no_content_is_incomplete(value: bytes) -> None:
    error = refused(value)

    assert error.code == Code.MESSAGE_INCOMPLETE
    assert "exactly one of the fields 'uri', 'data' and 'text'" in error.message


@pytest.mark.parametrize(
    ("names", "accepts"),
    [
        ("uri data", ("image",)),
        ("uri data text", ("image", "audio")),
        ("uri data", ("text",)),
        ("uri text", ("text",)),
        ("data text", ("image", "text", "audio")),
        ("uri data text", ("image", "text", "audio")),
    ],
)
def test_several_contents_are_incomplete(names: str, accepts: Sequence[ModalityName]) -> None:
    value = json.dumps(dict.fromkeys(names.split(), "YQ==")).encode()
    error = refused(value, accepts=accepts)

    assert error.code == Code.MESSAGE_INCOMPLETE
    assert "exactly one of the fields 'uri', 'data' and 'text'" in error.message


@pytest.mark.parametrize("accepts", [("image",), ("audio",), ("image", "audio")])
@pytest.mark.parametrize(("name", "is_content"), [("uri", False), ("data", True)])
def test_a_text_beside_other_content_is_an_attribute_where_texts_are_not_accepted(
    name: str, is_content: bool, accepts: Sequence[ModalityName]
) -> None:
    item = parsed(json.dumps({name: "YQ==", "text": "a caption"}).encode(), accepts=accepts)

    assert (item.content, item.uri) == ((b"a", None) if is_content else (None, "YQ=="))
    assert item.attributes == {"text": "a caption"}
    assert item.media_type is None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"[]", "an array"),
        (b'[{"uri": "u"}]', "an array"),
        (b'"uri"', "a string"),
        (b"7", "a number"),
        (b"true", "a boolean"),
        (b"NaN", "a number"),
        (b"null", "null"),
    ],
)
def test_json_that_is_not_an_object_is_malformed(value: bytes, kind: str) -> None:
    assert f"the value is {kind}, not an object" in malformed(value)


@pytest.mark.parametrize("value", [b'[{"uri": "u"}]', b' "uri"', b'"\\ud800"', b"[1]"])
def test_an_array_or_a_string_is_not_an_image(value: bytes) -> None:
    assert "not an object" in malformed(value, "auto")


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
def test_a_value_that_is_not_json_is_malformed(value: bytes, reason: str) -> None:
    message = malformed(value)

    assert "the value is not JSON in UTF-8" in message
    assert reason in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        *[("Y", ""), ("YQ===", ""), ("YQ==YQ==", ""), ("====", ""), ("=YQ=", ""), ("YQ==\nY", "")],
        ("YWJj+_", "mixes the alphabets"),
        ("YWJj/-", "mixes the alphabets"),
        ("ä", "character 'ä' at position 0"),
        ("YW\r\nJj.A==", "character '.' at position 6"),
        ("YWJj\0", "character '\\x00' at position 4"),
        ("YWJj\u00a0.", "character '.' at position 5"),
        ("YWJj\\q", "character '\\\\' at position 4"),
        ("a,YQ==", "character ',' at position 1"),
        ("data:image/png;base64", "needs a comma"),
        ("data:image/png;base64,Y", ""),
        (f"89504e47{'0d' * 28}", "hexadecimal digits; send base64"),
        (f"0x89504E47{'0D' * 28}", "hexadecimal digits"),
        (f"\\x89504e47{'0d' * 28}\n", "hexadecimal digits"),
    ],
)
def test_data_that_is_not_base64_is_malformed(data: str, said: str) -> None:
    message = malformed(json.dumps({"data": data}).encode())

    assert "the field 'data' is not base64: " in message
    assert said in message


def spellings(content: bytes) -> dict[str, str]:
    """Base64 of `content` as producers write it."""
    plain = base64.b64encode(content).decode()
    lines = base64.encodebytes(content).decode()
    lines_by_themselves = "\n".join(
        base64.b64encode(content[start : start + 10]).decode()
        for start in range(0, len(content), 10)
    )
    url_safe = base64.urlsafe_b64encode(content).decode()
    return {
        "plain": plain,
        "unpadded": plain.rstrip("="),
        "lines": lines,
        "lines-crlf": lines.replace("\n", "\r\n"),
        "lines-unpadded": lines.replace("=", ""),
        "lines-cr": lines.replace("\n", "\r"),
        "lines-by-themselves": lines_by_themselves,
        "half-padded": plain.removesuffix("="),
        "spaces": f" {plain[:10]} \t{plain[10:]} ",
        "spaces-of-pages": f"\ufeff{plain[:10]}\u00a0\u2028\v\f\u200b{plain[10:]}\u3000",
        "escaped-twice": json.dumps(lines)[1:-1].replace("/", "\\/").replace("=", "\\u003d"),
        "url-safe": url_safe,
        "url-safe-unpadded": url_safe.rstrip("="),
        "data-uri": f"data:image/png;base64,{plain}",
        "data-uri-capitals": f"DATA:image/png;BASE64,{plain}",
        "data-uri-spaces": f" \r\ndata:image/png;base64, {plain}\n",
        "data-uri-escaped-head": f"data:image%2Fpng%3Bbase64,{plain}",
        "data-uri-parameters": f'data:image/png;name="a b.png";x=%2C;Base64;y=1,{plain}',
        "data-uri-escaped-twice": f"data:image\\/png;base64,{lines}".replace("\n", "\\n"),
        "data-uri-bare": f"data:;base64,{plain}",
        "data-uri-charset": f"data:image/png;charset=utf-8;base64,{plain}",
        "data-uri-escaped": f"data:image/png;base64,{quote(plain, safe='')}",
        "data-uri-lines": f"data:image/png;base64,{lines}",
        "data-uri-url-safe": f"data:image/png;base64,{url_safe.rstrip('=')}",
        "data-uri-plain": f"data:image/png,{quote(content)}",
    }


@pytest.mark.parametrize("data", ["0d0d", "0" * 64, "A" * 64, f"{'0D' * 31}0d", "d34d" * 15])
def test_base64_may_look_like_hexadecimal_digits(data: str) -> None:
    assert parsed(json.dumps({"data": data}).encode()).content == base64.b64decode(data)


@pytest.mark.parametrize("spelling", spellings(b"a"))
@pytest.mark.parametrize("size", [1, 2, 3, 57, 200])
def test_every_spelling_of_base64_is_read(spelling: str, size: int) -> None:
    # 0xfb and 0xff give '+' and '/'.
    content = (bytes(range(251, 256)) * size)[:size]
    data = spellings(content)[spelling]

    assert parsed(json.dumps({"data": data}).encode()).content == content
    if spelling.startswith("data-uri"):
        item = parsed(json.dumps({"uri": data}).encode(), "auto")
        assert (item.content, item.uri) == (content, None)


@given(st.binary(min_size=1, max_size=200))
def test_all_spellings_of_any_bytes_are_those_bytes(content: bytes) -> None:
    read = {
        parsed(json.dumps({"data": data}).encode()).content for data in spellings(content).values()
    }

    assert read == {content}


@given(st.text() | st.text("YQab+/-_= \n,;:%data"))
def test_any_text_as_data_is_bytes_or_malformed(text: str) -> None:
    for name in ("data", "uri"):
        with contextlib.suppress(ItemError):
            item = parsed(json.dumps({name: text}).encode())
            assert (item.uri is None) != (item.content is None)


@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_thirty_megabytes_in_lines_are_decoded_fast(start: str) -> None:
    content = bytes(range(256)) * 120_000
    value = json.dumps({"data": start + base64.encodebytes(content).decode()}).encode()
    started = time.process_time()

    assert parsed(value).content == content
    assert time.process_time() - started < 3


# Texts.

TEXTS: Sequence[ModalityName] = ("text",)
MIXED: Sequence[ModalityName] = ("image", "text", "audio")


@pytest.mark.parametrize("message_format", ["auto", "json"])
@pytest.mark.parametrize("accepts", [("image",), TEXTS, MIXED])
@pytest.mark.parametrize(
    "text", ["a red bicycle", "Käse 鳥 \U0001f600", " \n", "data:,a", "file:///a", "{}", "\0"]
)
def test_the_field_text_is_the_text(
    text: str, accepts: Sequence[ModalityName], message_format: MessageFormat
) -> None:
    value = json.dumps({"id": "a", "text": text, "uri": "", "data": None, "shop": 7}).encode()

    item = parsed(value, message_format, accepts=accepts)

    expected = Item("a", content=text.encode(), attributes={"shop": "7"}, media_type="text/plain")
    assert item == expected


@pytest.mark.parametrize("name", ["uri", "data"])
def test_other_content_declares_no_type(name: str) -> None:
    assert parsed(json.dumps({name: "YQ=="}).encode()).media_type is None
    assert parsed(b"plain", "auto", accepts=TEXTS).media_type is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"\\ud800"', "the field 'text' holds half of a surrogate pair"),
        ('"a \\udfff b"', "the field 'text' holds half of a surrogate pair"),
        ("7", "the field 'text' is a number, not a string"),
        ('["a"]', "the field 'text' is an array, not a string"),
    ],
)
def test_a_text_that_is_not_a_string_of_characters_is_malformed(text: str, said: str) -> None:
    assert said in malformed(f'{{"text": {text}}}'.encode())


@pytest.mark.parametrize("message_format", ["auto", "json"])
@pytest.mark.parametrize("value", ['{"text": ""}', '{"text": "", "uri": null, "data": ""}'])
def test_an_empty_text_is_an_item_where_texts_are_accepted(
    value: str, message_format: MessageFormat
) -> None:
    """So it becomes a failure of the text, as an empty message does."""
    for accepts in (TEXTS, MIXED):
        item = parsed(value.encode(), message_format, accepts=accepts)
        assert item == Item(POSITION, content=b"", media_type="text/plain")
    assert refused(value.encode(), message_format).code == Code.MESSAGE_INCOMPLETE


def test_an_empty_text_beside_other_content_is_no_content() -> None:
    for accepts in (("image",), TEXTS, MIXED):
        item = parsed(b'{"uri": "u", "text": ""}', accepts=accepts)
        assert item == Item(POSITION, uri="u")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_survives_json(text: str) -> None:
    assert parsed(json.dumps({"text": text}).encode()).content == text.encode()


QUOTED = [b'"quoted"', b"[1]", b'["a", "b"]', b' "a"', b'"\\ud800"', b'"{ no object"', b"[]"]


@pytest.mark.parametrize("accepts", [TEXTS, MIXED])
@pytest.mark.parametrize("value", QUOTED)
def test_a_quoted_or_bracketed_text_is_a_text_where_texts_are_accepted(
    value: bytes, accepts: Sequence[ModalityName]
) -> None:
    assert parsed(value, "auto", accepts=accepts) == Item(POSITION, content=value)
    assert "not an object" in malformed(value, "auto")
    assert "not an object" in refused(value, "json", accepts=accepts).message


@pytest.mark.parametrize("accepts", [("image",), TEXTS, MIXED])
def test_an_object_that_was_encoded_twice_is_never_a_text(accepts: Sequence[ModalityName]) -> None:
    value = json.dumps(json.dumps({"text": "a"})).encode()
    assert "it was encoded twice" in refused(value, "auto", accepts=accepts).message


def test_a_plain_text_that_begins_with_a_brace_is_refused_with_advice() -> None:
    value = b"{curly} braces"
    advice = "needs message.format bytes, or the JSON field 'text'"
    assert advice in refused(value, "auto", accepts=TEXTS).message
    assert advice not in refused(value, "auto").message
    assert advice not in refused(value, "json", accepts=TEXTS).message
    assert parsed(value, "bytes", accepts=TEXTS).content == value


SOUNDS = [b"RIFF\x24\0\0\0WAVE", b"fLaC\0", b"OggS\0\2", b"ID3\4\0", b"\xff\xfb\x90\x64"]


@pytest.mark.parametrize("message_format", ["auto", "bytes"])
@pytest.mark.parametrize("value", [*SOUNDS, "möwe".encode(), b"\xef\xbb\xbfmarked", b"\xff"])
def test_plain_texts_and_sounds_are_content(value: bytes, message_format: MessageFormat) -> None:
    for accepts in (TEXTS, ("audio",), MIXED):
        assert parsed(value, message_format, accepts=accepts).content == value


# The wrappers of Kafka Connect, Debezium and Confluent's serializers.


@pytest.mark.parametrize("message_format", ["auto", "json"])
@pytest.mark.parametrize("schema_id", [1, 42, 65_541, 131_072, 100_001, 2**31 - 1])
def test_json_after_a_schema_id_is_read(message_format: MessageFormat, schema_id: int) -> None:
    value = b"\0" + schema_id.to_bytes(4, "big") + b'{"id": "a", "uri": "s3://b/k", "shop": 7}'
    item = parsed(value, message_format)

    assert item == Item("a", uri="s3://b/k", attributes={"shop": "7"})


@pytest.mark.parametrize("message_format", ["auto", "json"])
@pytest.mark.parametrize("schema_id", [1, 42, 100_001, 2**31 - 1])
@pytest.mark.parametrize("after", [b"\x0as3://b/k", b"\x00\x0a\x08s3://b/k", b'"text"', b"\0"])
def test_other_values_after_a_schema_id_are_refused_by_name(
    message_format: MessageFormat, schema_id: int, after: bytes
) -> None:
    message = malformed(b"\0" + schema_id.to_bytes(4, "big") + after, message_format)

    assert f"Confluent's schema-registry wire format with schema id {schema_id}," in message
    assert "produce plain JSON" in message


UUID_BYTES = UUID("0fa1b2c3-1111-4222-8333-444455556666").bytes


@pytest.mark.parametrize("message_format", ["auto", "json"])
@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (b"\3\0" + UUID_BYTES, "AWS Glue's schema registry"),
        (b"\3\5" + UUID_BYTES, "AWS Glue's schema registry"),
        (bytes(8) + b"\7", "Apicurio's wire format"),
        (b"\xc3\1" + bytes(range(8)), "Avro's single-object encoding"),
    ],
)
@pytest.mark.parametrize("after", [REFERENCE, b"\x0as3://b/k"])
def test_the_frames_of_other_registries_are_named(
    frame: bytes, named: str, after: bytes, message_format: MessageFormat
) -> None:
    message = malformed(frame + after, message_format)

    assert f"the value looks like {named}" in message or f"the wire format of {named}" in message
    assert "produce plain JSON" in message
    assert parsed(frame + after, "bytes").content == frame + after


@pytest.mark.parametrize(
    "value",
    [
        b"\0\0\1\0\1\0\x10\x10",
        b"\0\0\2\0\1\0\x10\x10",
        b"\0\0\0\x1cftypavif",
        b"\0\0\0\x18ftypheic",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\0\0\0\x0cJXL \r\n\x87\n",
        b"\0\0\2\0\0\0\0\0\0\0\0\0\x10\0\x10\0",
        b"\0\1\1\0\0\0\1\x18",
        bytes(100),
        b"\0\xd8\xff\xe0\0\x10JFIF",
        b"\0\0\0\0\1",
    ],
    ids=["ico", "cur", "avif", "heic", "jp2", "jxl", "tga", "tga-map", "zeros", "jpeg", "short"],
)
def test_images_that_begin_with_a_zero_are_images(value: bytes) -> None:
    assert parsed(value, "auto").content == value
    assert "not JSON" in malformed(value, "json")


def test_nothing_is_stripped_in_the_format_bytes() -> None:
    value = b"\0\0\0\0\1" + REFERENCE
    assert parsed(value, "bytes").content == value


CONNECT = "Kafka Connect envelope: set value.converter.schemas.enable=false"
DEBEZIUM = "Debezium change event: add the transform ExtractNewRecordState"
EVENT = {"before": None, "after": {"uri": "u"}, "source": {}, "op": "c"}


@pytest.mark.parametrize("message_format", ["auto", "json"])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"schema": {"type": "struct"}, "payload": {"uri": "u"}}, [CONNECT]),
        ({"schema": None, "payload": "u"}, [CONNECT]),
        ({"schema": {}, "payload": None}, [CONNECT]),
        (EVENT, [DEBEZIUM]),
        ({"before": {"uri": "u"}, "op": "d"}, [DEBEZIUM]),
        ({"schema": {}, "payload": EVENT}, [CONNECT, DEBEZIUM]),
        (
            {"specversion": "1.0", "id": "a", "data_base64": "YQ=="},
            ["CloudEvent", "as in {data: data_base64}"],
        ),
        (
            {"EventName": "s3:ObjectCreated:Put", "Key": "b/k", "Records": []},
            ["MinIO", """as in {uri: "join('', ['s3://', Key])"}"""],
        ),
        ({"specversion": "1.0", "id": "a", "data": {"uri": "u"}}, ["CloudEvent"]),
    ],
)
def test_an_envelope_is_named(
    fields: dict[str, object], named: list[str], message_format: MessageFormat
) -> None:
    error = refused(json.dumps(fields).encode(), message_format)

    assert error.code == Code.MESSAGE_INCOMPLETE
    assert all(name in error.message for name in named)
    assert "must be at the top level" in error.message


@pytest.mark.parametrize("extra", [{"op": "c", "after": 1}, {"schema": 1, "payload": 2}])
def test_fields_named_like_those_of_envelopes_are_attributes(extra: dict[str, object]) -> None:
    item = parsed(json.dumps({"uri": "s3://b/k", **extra}).encode())

    assert item.uri == "s3://b/k"
    assert item.attributes.keys() == extra.keys()


@pytest.mark.parametrize("name", ["uri", "data"])
@pytest.mark.parametrize(
    ("value", "kind"), [(7, "a number"), (False, "a boolean"), ([], "an array"), ({}, "an object")]
)
def test_a_field_of_another_type_is_malformed(name: str, value: object, kind: str) -> None:
    message = malformed(json.dumps({name: value}).encode())

    assert f"the field '{name}' is {kind}, not a string" in message


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"type": "Buffer", "data": [137, 80]}, "bytes as numbers: send them in base64"),
        ({"data": {"type": "Buffer", "data": [137, 80]}}, "send them in base64"),
        ({"data": [-119, 80]}, "send them in base64"),
        ({"data": {"$binary": {"base64": "YQ=="}}}, "choose one of its members in message.fields"),
        ({"uri": [1]}, "choose one in message.fields"),
    ],
)
def test_content_in_another_type_gets_advice(fields: dict[str, object], advice: str) -> None:
    assert advice in malformed(json.dumps(fields).encode())


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


def test_no_depth_of_nesting_raises_another_error() -> None:
    least = bisect.bisect_left(range(200_000), True, key=is_refused)
    around = [is_refused(depth) for depth in range(least - 20, least + 20)]

    assert around == sorted(around)
    assert set(around) == {False, True}
