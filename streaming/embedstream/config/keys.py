"""Dotted keys and the fields of the configuration that they lead to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from embedstream.config.sections import StreamConfig

__all__ = ["find_listed", "find_map", "find_section", "follow_keys", "list_keys", "takes_text"]


def follow_keys(keys: Sequence[str]) -> tuple[int, list[object]]:
    """Follow keys from section to section; return how many are fields, and the last one's types."""
    types: list[object] = [StreamConfig]
    for depth, name in enumerate(keys):
        if name.isdigit() and (listed := find_listed(types)) is not None:
            types = [listed]
            continue
        section = find_section(types)
        if section is None or name not in section.model_fields:
            return depth, types
        types = list(_list_types(section.model_fields[name].annotation))
    return len(keys), types


def find_section(types: Iterable[object]) -> type[BaseModel] | None:
    """Return the section among the types of a field."""
    return next(
        (one for one in types if isinstance(one, type) and issubclass(one, BaseModel)), None
    )


def find_listed(types: Iterable[object]) -> type[BaseModel] | None:
    """Return the section that a list among the types of a field has as its entries."""
    lists = (get_args(one) for one in types if get_origin(one) is tuple)
    return next((section for one in lists if (section := find_section(one)) is not None), None)


def find_map(types: Iterable[object]) -> object | None:
    """Return the map among the types of a field, such as `dict[str, str]`."""
    return next((one for one in types if get_origin(one) is dict), None)


def takes_text(keys: Sequence[str]) -> bool:
    """Return whether the value of a key, or of a name in a map of texts, is a text."""
    depth, types = follow_keys(keys)
    if depth == len(keys) - 1:
        types = list(_list_types(get_args(find_map(types))[1])) if find_map(types) else []
    return depth >= len(keys) - 1 and bool(types) and set(types) <= {str, SecretStr, NoneType}


def list_keys(section: type[BaseModel] = StreamConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a section, and of the sections in it."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        types = list(_list_types(field.annotation))
        if (inner := find_section(types)) is not None:
            yield from list_keys(inner, f"{prefix}{name}.")
        if (listed := find_listed(types)) is not None:
            yield from list_keys(listed, f"{prefix}{name}.0.")


def _list_types(annotation: object) -> Iterator[object]:
    if get_origin(annotation) is Annotated:
        yield from _list_types(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _list_types(choice)
    else:
        yield annotation
