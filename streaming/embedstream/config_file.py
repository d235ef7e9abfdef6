"""The configuration read from YAML, the environment and `--set`, with every problem explained."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from embedstream.config import Config, ConfigError, FilesConfig, names_secret

__all__ = ["files_config", "load_config", "parse_value"]

ENVIRONMENT_PREFIX = "EMBEDSTREAM_"

# PyYAML quotes aliases and tags in its errors, and a password may begin like one; its own names for
# the parts of a document, as '<block end>', and single characters are left.
_QUOTED_INPUT = re.compile(r"""(['"])[^<\s]\S{2,}\1""")


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read a YAML file; the environment wins over the file, `overrides` over both.

    An override is `key=value` with a dotted key, `kafka.subscribe=images`; its environment variable
    is `EMBEDSTREAM_KAFKA__SUBSCRIBE`. Values are read as YAML.

    Raises:
        ConfigError: for every problem at once.
    """
    tree = _read_yaml(path)
    settings = [
        *_from_environment(os.environ if environment is None else environment),
        *map(_from_override, overrides),
    ]
    for keys, value in settings:
        _assign(tree, keys, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, path, tree)) from None


def files_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> FilesConfig:
    """The settings of `embedstream batch`: a tree of them, and what overrides it.

    Raises:
        ConfigError: for every problem at once.
    """
    for keys, value in map(_from_override, overrides):
        _assign(tree, keys, value)
    try:
        return FilesConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, Path("--set"), tree)) from None


Setting = tuple[list[str], Any]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not YAML: it is no UTF-8 text") from None
    tree = _parse(text, f"the configuration {path}")
    if not isinstance(tree, dict):
        raise ConfigError(f"the configuration {path} holds no keys; see conf/local.yaml")
    return tree


def _from_environment(environment: Mapping[str, str]) -> Iterable[Setting]:
    for name, value in sorted(environment.items()):
        keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.startswith(ENVIRONMENT_PREFIX) and keys[0] in Config.model_fields:
            yield keys, parse_value(name, value)


def _from_override(override: str) -> Setting:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set takes key=value, as kafka.subscribe=images; not '{override}'")
    return _split_key(key.strip()), parse_value(key, value)


def _split_key(key: str) -> list[str]:
    """Split at dots, but leave whole the name of an option or a topic, which may have dots."""
    section: type[BaseModel] | None = Config
    keys = key.split(".")
    for depth, name in enumerate(keys):
        field = section.model_fields.get(name) if section else None
        annotation = field.annotation if field else None
        if _may_be_map(annotation) and depth + 1 < len(keys):
            return [*keys[: depth + 1], ".".join(keys[depth + 1 :])]
        section = _as_section(annotation)
    return keys


def _as_section(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _may_be_map(annotation: object) -> bool:
    return any(get_origin(choice) is dict for choice in (annotation, *get_args(annotation)))


def parse_value(name: str, value: str) -> object:
    """Read the YAML that stands outside a file for a key.

    Raises:
        ConfigError: it is not YAML; the value is not repeated.
    """
    return _parse(value, f"the value of {name}")


def _parse(text: str, subject: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{subject} is not YAML: {_without_input(error)}") from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(
            f"{subject} is not YAML: a character, a number or a date in it does not exist"
        ) from None


def _without_input(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML says is wrong, and where, but nothing of what it read: that may be a secret."""
    parts = [(error.context, error.context_mark), (error.problem, error.problem_mark)]
    return ", ".join(
        f"{_QUOTED_INPUT.sub('…', text)} in line {mark.line + 1}, column {mark.column + 1}"
        for text, mark in parts
        if text and mark
    )


def _assign(tree: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        child = tree.get(key)
        if not isinstance(child, dict):
            child = tree[key] = {}
        tree = child
    old = tree.get(keys[-1])
    merge = isinstance(old, dict) and isinstance(value, dict)
    tree[keys[-1]] = {**old, **value} if merge else value  # type: ignore[dict-item]


def _explain(error: ValidationError, path: Path, tree: Mapping[str, Any]) -> str:
    problems = [_explain_one(problem, tree) for problem in error.errors(include_url=False)]
    return "\n".join([f"the configuration {path} is wrong:", *dict.fromkeys(problems)])


def _explain_one(problem: Any, tree: Mapping[str, Any]) -> str:
    location = [part for part in problem["loc"] if part in _known_parts(tree, problem["loc"])]
    key = ".".join(map(str, location)) or "configuration"
    match problem["type"]:
        case "extra_forbidden":
            return f"  {key}: unknown key; {_choices(location)}"
        case "missing":
            return f"  {'.'.join(map(str, problem['loc']))}: required, but not given"
        case "value_error":
            return f"  {key}: {problem['ctx']['error']}"
        case _:
            message = problem["msg"].removeprefix("Input ")
            shown = _shown(problem["type"], location, _value_at(tree, location))
            return f"  {key}: {message}{shown}"


def _shown(problem: str, location: Sequence[str | int], value: object) -> str:
    """A wrong value as a message repeats it: only a plain one, where no options belong.

    Any other may hold a secret in plain text.
    """
    options = problem == "model_type" or "options" in location
    plain = isinstance(value, str | int | float | date | None)
    secret = any(names_secret(str(part)) for part in location)
    return f", not {value!r}" if plain and not options and not secret else ""


def _known_parts(tree: Any, location: Iterable[str | int]) -> set[str | int]:
    """The parts of a location that are keys of the file; pydantic adds names of union members."""
    known: set[str | int] = set()
    for part in location:
        is_key = isinstance(tree, dict) and part in tree
        if is_key or (isinstance(tree, list) and isinstance(part, int) and part < len(tree)):
            known.add(part)
            tree = tree[part]
    return known


def _value_at(tree: Any, location: Sequence[str | int]) -> object:
    for part in location:
        tree = tree[part]
    return tree


def _choices(location: Sequence[str | int]) -> str:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        section = _as_section(section.model_fields[str(part)].annotation) or section
    known = list(section.model_fields)
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"{hint}known: {', '.join(known)}"
