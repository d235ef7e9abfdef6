"""The configuration read from YAML, the environment and `--set`, with every problem explained."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from embedstream.config import Config, ConfigError, names_secret

__all__ = ["load_config"]

ENVIRONMENT_PREFIX = "EMBEDSTREAM_"


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


Setting = tuple[list[str], Any]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"the configuration {path} holds no keys; see conf/local.yaml")
    return tree


def _from_environment(environment: Mapping[str, str]) -> Iterable[Setting]:
    for name, value in sorted(environment.items()):
        keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.startswith(ENVIRONMENT_PREFIX) and keys[0] in Config.model_fields:
            yield keys, _yaml_value(name, value)


def _from_override(override: str) -> Setting:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set takes key=value, as kafka.subscribe=images; not '{override}'")
    return _split_key(key.strip()), _yaml_value(key, value)


def _split_key(key: str) -> list[str]:
    """Split at dots, but leave whole the name of an option, which has dots of its own."""
    section: type[BaseModel] | None = Config
    keys = key.split(".")
    for depth, name in enumerate(keys):
        field = section.model_fields.get(name) if section else None
        annotation = field.annotation if field else None
        if get_origin(annotation) is dict and depth + 1 < len(keys):
            return [*keys[: depth + 1], ".".join(keys[depth + 1 :])]
        section = _as_section(annotation)
    return keys


def _as_section(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _yaml_value(name: str, value: str) -> object:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {name} is not YAML: {error}") from None


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
    value = _value_at(tree, location)
    match problem["type"]:
        case "extra_forbidden":
            return f"  {key}: unknown key; {_choices(location)}"
        case "missing":
            return f"  {'.'.join(map(str, problem['loc']))}: required, but not given"
        case "value_error":
            return f"  {key}: {problem['ctx']['error']}"
        case _:
            shown = "" if names_secret(key) else f", not {value!r}"
            message = problem["msg"].removeprefix("Input ")
            return f"  {key}: {message}{shown}"


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
