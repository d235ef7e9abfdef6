"""Explain what is wrong with a configuration: the key, its value, and the known keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from embedstream.config.keys import find_section, follow_keys, list_keys
from embedstream_core.redaction import names_secret

__all__ = ["explain_invalid", "explain_variable"]

# Pydantic's messages for these are about Python.
_MESSAGES = {
    "dict_type": "should be a map, as {name: value}",
    "list_type": "should be a list, as [one, other]",
    "model_type": "should be a section with keys of its own",
    "string_type": "should be a text",
    "too_short": "should not be empty",
    "tuple_type": "should be a list, as [one, other]",
}


def explain_invalid(
    error: ValidationError,
    subject: str,
    tree: Mapping[str, Any],
    *,
    model: type[BaseModel],
) -> str:
    """Return a line for each problem of the configuration of a model that was read as `tree`."""
    problems = [_explain_one(problem, tree, model) for problem in error.errors(include_url=False)]
    lines = dict.fromkeys(filter(None, problems))
    return "\n".join([f"the configuration {subject} is wrong:", *lines])


def explain_variable(name: str, prefix: str, others: Iterable[str]) -> str:
    """Return a sentence about an environment variable that has the prefix but names no key."""
    known = [f"{prefix}{key.replace('.', '__').upper()}" for key in list_keys()]
    nearest = difflib.get_close_matches(name.upper(), [*known, *others], n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return (
        f"the environment variable {name} names no key of the configuration; {hint}Two underscores "
        f"stand for each dot of a key: {prefix}KAFKA__SUBSCRIBE is kafka.subscribe"
    )


def _explain_one(problem: Any, tree: Any, model: type[BaseModel]) -> str:
    location: list[str | int] = []
    value = tree
    for part in problem["loc"]:
        # Pydantic adds the names of union members, which are not keys of the file.
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            location.append(part)
            value = value[part]
    key = ".".join(map(str, location)) or "configuration"
    match problem["type"]:
        case "extra_forbidden":
            _, types = follow_keys(list(map(str, location[:-1])))
            section = find_section(types) if len(location) > 1 else model
            known = list(section.model_fields) if section else []
            nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean '{nearest[0]}'? " if nearest else ""
            return f"  {key}: unknown key; {hint}known: {', '.join(known)}"
        case "missing":
            return f"  {'.'.join(map(str, problem['loc']))}: required, but not given"
        case "value_error":
            # An error of several sections names their keys itself.
            subject = f"{key}: " if location else ""
            return f"  {subject}{problem['ctx']['error']}"
    if problem["type"] == "too_short" and value:
        # Of a list whose values are all wrong, Pydantic says too that it has none.
        return ""
    message = _MESSAGES.get(problem["type"]) or problem["msg"].removeprefix("Input ")
    # Only a plain value is repeated, and not where options belong: others may hold a secret.
    is_shown = isinstance(value, str | int | float | None) and problem["type"] != "model_type"
    if "options" in location or any(names_secret(str(part)) for part in location):
        is_shown = False
    return f"  {key}: {message}{f', not {value!r}' if is_shown else ''}"
