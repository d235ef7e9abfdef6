"""Build an item from a message's document: JSON, or what a schema registry's decoder returns."""

from __future__ import annotations

import base64
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import date, time
from functools import partial
from typing import Any, Final

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.messages import inline_data
from embedstream_core.messages.fields import CONTENT_FIELDS, FieldExpressions
from embedstream_core.messages.keys import write_id
from embedstream_core.records import Deletion, Item
from embedstream_core.settings import ModalityName

__all__ = ["Outside", "build_item", "is_encoded_twice"]

_Malformed = partial(ItemError, Code.MESSAGE_MALFORMED, Stage.MESSAGE)
_TYPES: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bytes: "bytes",
    bool: "a boolean",
    type(None): "null",
}
_EMPTY: Final = (None, "", b"")


@dataclass(frozen=True, slots=True)
class Outside:
    """What a message says of its item outside the document; `image_id` is used if that has none."""

    image_id: str
    attributes: Mapping[str, str]
    position: str
    has_key: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """The fields of a document, as they are in it; `content` has those of `CONTENT_FIELDS`."""

    id: Any
    content: dict[str, Any]
    attributes: dict[Any, Any]
    is_deletion: bool = False


def build_item(
    document: Any,
    outside: Outside,
    *,
    expressions: FieldExpressions | None,
    accepts: Container[ModalityName],
) -> Item | Deletion:
    """Return the item of a document, whose fields are where the expressions find them.

    Without expressions the document is an object with its fields at the top level, and its other
    fields are attributes.

    Raises:
        ItemError: the document has no content, several, or a field of a wrong type.
    """
    if is_encoded_twice(document):
        raise _Malformed("the value is a JSON string that holds an object: it was encoded twice")
    found = _pick(document) if expressions is None else _find(document, expressions)
    image_id = outside.image_id if found.id in _EMPTY else _write_id(found.id)
    if found.is_deletion:
        if not outside.has_key:
            raise ItemError(
                Code.MESSAGE_INCOMPLETE,
                Stage.MESSAGE,
                f"{_label('delete', expressions)} is true, but the message has no key to delete",
            )
        return Deletion(image_id, _write_attributes(outside, found))
    name = _choose_content(found, document, expressions=expressions, accepts=accepts)
    text, content = _read_content(name, found.content[name], expressions)
    return Item(
        image_id=image_id,
        uri=text if content is None else None,
        content=content,
        attributes=_write_attributes(outside, found),
        media_type="text/plain" if name == "text" else None,
        position=outside.position,
    )


def _pick(document: Any) -> _Found:
    """Take the fields at the top level of an object."""
    if not isinstance(document, dict):
        raise _Malformed(
            f"the value is {_describe_type(document)}, not an object with 'uri', 'data' or 'text'"
        )
    others = dict(document)
    image_id = others.pop("id", None)
    return _Found(image_id, {name: others.pop(name, None) for name in CONTENT_FIELDS}, others)


def _find(document: Any, expressions: FieldExpressions) -> _Found:
    """Evaluate the expressions on a document of any shape."""
    is_deletion = expressions.find("delete", document)
    if not isinstance(is_deletion, bool | None):
        label = _label("delete", expressions)
        raise _Malformed(f"{label} is {_describe_type(is_deletion)}, not a boolean")
    image_id = expressions.find("id", document)
    attributes = expressions.find("attributes", document)
    if not isinstance(attributes, dict | None):
        label = _label("attributes", expressions)
        raise _Malformed(f"{label} is {_describe_type(attributes)}, not an object")
    others = dict(attributes or {})
    if is_deletion:
        # What it deletes has no content any more, on which an expression could fail.
        return _Found(image_id, {}, others, is_deletion=True)
    content = {name: expressions.find(name, document) for name in CONTENT_FIELDS}
    if content["data"] not in _EMPTY:
        # An object that holds the data too would copy it into an attribute.
        others = {name: value for name, value in others.items() if value is not content["data"]}
    return _Found(image_id, content, others)


def _choose_content(
    found: _Found,
    document: Any,
    *,
    expressions: FieldExpressions | None,
    accepts: Container[ModalityName],
) -> str:
    """Return the name of the only content; an image's text becomes an attribute, its caption."""
    # Producers with a fixed set of fields leave the others empty.
    given = [name for name in CONTENT_FIELDS if found.content[name] not in _EMPTY]
    if "text" in accepts and not given and found.content["text"] == "":
        given = ["text"]
    elif "text" not in accepts and len(given) > 1 and "text" in given:
        given.remove("text")
        found.attributes.setdefault("text", found.content["text"])
    if expressions is None:
        advice = _advise_on_envelope(document)
        if len(given) == 1 and (not advice or isinstance(found.content[given[0]], str | bytes)):
            return given[0]
        rule = "a message needs exactly one of the fields 'uri', 'data' and 'text', not empty"
        raise ItemError(Code.MESSAGE_INCOMPLETE, Stage.MESSAGE, advice or rule)
    if len(given) == 1:
        return given[0]
    named = [name for name in CONTENT_FIELDS if getattr(expressions, name) is not None]
    labels = ", ".join(f"'{name}' ({getattr(expressions, name)})" for name in named)
    rule = (
        f"exactly one of the fields in message.fields must be in the message, not empty: {labels}; "
        f"it has {' and '.join(map(repr, given)) or 'none of them'}"
    )
    if _is_debezium_delete(document):
        rule += "; it is a Debezium delete, which needs message.fields.delete"
    raise ItemError(Code.MESSAGE_INCOMPLETE, Stage.MESSAGE, rule)


def _read_content(
    name: str, value: Any, expressions: FieldExpressions | None
) -> tuple[str, bytes | None]:
    """Return the text of a field, and the bytes that it holds, None for a reference."""
    label = _label(name, expressions)
    if name == "data" and isinstance(value, bytes):
        return "", value
    if not isinstance(value, str):
        advice = _advise_on_type(name, value)
        raise _Malformed(f"{label} is {_describe_type(value)}, not a string{advice}")
    if _replace_surrogates(value) != value:
        raise _Malformed(f"{label} holds half of a surrogate pair")
    if name == "data" or (name == "uri" and inline_data.is_data_uri(value)):
        try:
            return value, inline_data.decode_inline_data(value)
        except ValueError as error:
            raise _Malformed(f"{label} is not base64: {error}") from None
    return value, value.encode() if name == "text" else None


def _advise_on_type(name: str, value: object) -> str:
    """Return what to do about a field that holds its content as something else than a string."""
    if isinstance(value, dict) and value.get("type") == "Buffer":
        value = value.get("data")
    if name == "data" and isinstance(value, list) and value and type(value[0]) is int:
        return (
            "; these are its bytes as numbers: send them in base64, as buffer.toString('base64') "
            "of Node.js writes them"
        )
    if isinstance(value, list):
        return (
            f", and has {len(value)} elements; a message is one item: choose one in "
            "message.fields, as in 'images[0].url', or split the message before it is sent"
        )
    if isinstance(value, dict):
        return "; choose one of its members in message.fields, as in 'image.url'"
    return ""


def _write_attributes(outside: Outside, found: _Found) -> dict[str, str]:
    own = {
        _replace_surrogates(str(name)): _write_text(value)
        for name, value in found.attributes.items()
    }
    return {**outside.attributes, **own}


def _label(name: str, expressions: FieldExpressions | None) -> str:
    where = f" ({getattr(expressions, name)})" if expressions else ""
    return f"the field '{name}'{where}"


def _describe_type(value: object) -> str:
    name = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    return _TYPES.get(type(value), name)


def is_encoded_twice(document: object) -> bool:
    """Return whether a document is a string that holds a JSON object."""
    if not isinstance(document, str) or not document.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(document), dict)
    except (ValueError, RecursionError):
        return False


def _advise_on_envelope(document: Mapping[Any, Any]) -> str | None:
    """Return what to do about a message that holds the fields one level deeper."""
    payload = document.get("payload")
    is_connect = document.keys() == {"schema", "payload"}
    event = payload if is_connect and isinstance(payload, dict) else document
    advice, path, example = [], [], "{{uri: {}uri}}"
    if is_connect:
        advice.append("a Kafka Connect envelope: set value.converter.schemas.enable=false")
        path.append("payload")
    if "op" in event and ("after" in event or "before" in event):
        advice.append("a Debezium change event: add the transform ExtractNewRecordState")
        path.append("after")
    if "specversion" in event:
        advice.append("a CloudEvent in structured mode: send it in binary mode")
        if "data_base64" in event:
            example = "{{data: {}data_base64}}"
        else:
            path.append("data")
    if {"EventName", "Key", "Records"} <= event.keys():
        advice.append("a bucket notification of MinIO")
        example = "{{uri: \"join('', ['s3://', {}Key])\"}}"
    if not advice:
        return None
    return (
        f"this looks like {' and '.join(advice)}; the field 'uri', 'data' or 'text' must be at the "
        "top level of the message, or message.fields must say where it is, as in "
        + example.format("".join(f"{name}." for name in path))
    )


def _is_debezium_delete(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    payload = document.get("payload")
    event = payload if isinstance(payload, dict) else document
    return event.get("op") == "d" and "before" in event


def _write_id(value: object) -> str:
    return write_id(value) if isinstance(value, bytes) else _write_text(value)


def _write_text(value: object) -> str:
    """Return a string as it is, an atom of another kind as a text, and a compound as its JSON."""
    if isinstance(value, dict | list | tuple | int | float | None):
        try:
            text = json.dumps(value, ensure_ascii=False, default=_write_atom)
        except (RecursionError, TypeError, ValueError) as error:
            raise _Malformed(f"a value has no JSON text: {error}") from None
    else:
        text = _write_atom(value)
    return _replace_surrogates(text)


def _write_atom(value: object) -> str:
    """Return the text of a value that JSON does not have: of Avro, Protobuf and Python."""
    match value:
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case date() | time():
            return value.isoformat()
        case _:
            return str(value)


def _replace_surrogates(text: str) -> str:
    # A lone surrogate is valid in JSON's escapes but not in UTF-8, so Arrow would refuse the row.
    return text.encode("utf-8", "replace").decode("utf-8")
