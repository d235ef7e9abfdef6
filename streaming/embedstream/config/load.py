"""The configuration read from YAML, the environment and `--set`, with every problem explained."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from embedstream.config.sections import BulkFilesConfig, ConfigError, StreamConfig
from embedstream.config.yaml import read_yaml
from embedstream_core.redaction import names_secret

__all__ = ["files_config", "load_config"]

ENVIRONMENT_PREFIX = "EMBEDSTREAM_"
_MAY_BE_MEANT = re.compile(r"embedstream[_.-]", re.IGNORECASE)

# Other variables of that prefix, and what each is for.
_OTHER_VARIABLES: Mapping[str, str] = {
    "EMBEDSTREAM_JARS": "the folder of the jars",
    "EMBEDSTREAM_AUTO_PRECISION": "the precision that `auto` takes",
    "EMBEDSTREAM_SEED": "the chance of a test of faults",
    "EMBEDSTREAM_SOAK_MINUTES": "how long the soak test runs",
    "EMBEDSTREAM_SOAK_RESULTS": "where the soak test keeps its samples",
}

# Kubernetes gives each container some for each service, of which one may be called embedstream.
_OF_A_SERVICE = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
) -> StreamConfig:
    """Read a YAML file; the environment wins over the file, `overrides` over both.

    An override is `key=value` with a dotted key, `kafka.subscribe=images`; its environment variable
    is `EMBEDSTREAM_KAFKA__SUBSCRIBE`. Values are read as YAML, and where a text belongs as written.

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
        return StreamConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, path, tree)) from None


def files_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> BulkFilesConfig:
    """The settings of `embedstream batch`: a tree of them, and what overrides it.

    Raises:
        ConfigError: for every problem at once.
    """
    for keys, value in map(_from_override, overrides):
        _assign(tree, keys, value)
    try:
        return BulkFilesConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, Path("--set"), tree)) from None


Setting = tuple[list[str], Any]

_NULLS = ("", "~", "null")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not YAML: it is no UTF-8 text") from None
    tree = read_yaml(text, f"the configuration {path}")
    if not isinstance(tree, dict):
        raise ConfigError(f"the configuration {path} holds no keys; see conf/local.yaml")
    return tree


def _from_environment(environment: Mapping[str, str]) -> Iterable[Setting]:
    for name, value in sorted(environment.items()):
        if not _MAY_BE_MEANT.match(name) or name in _OTHER_VARIABLES:
            continue
        keys = _split_variable(name)
        fields = _find_fields(keys)
        if keys and (
            len(fields) == len(keys) or any(_may_be_map(field.annotation) for field in fields[-1:])
        ):
            yield keys, _read_value(name, value, keys)
        elif not _OF_A_SERVICE.search(name):
            raise ConfigError(_explain_variable(name))


def _split_variable(name: str) -> list[str]:
    """The keys that a variable names; none where it does not begin with the prefix.

    Below a map they are names of options and topics, whose case counts: of a variable in capitals,
    as is usual, they are in small letters.
    """
    if not name.startswith(ENVIRONMENT_PREFIX):
        return []
    written = name.removeprefix(ENVIRONMENT_PREFIX).split("__")
    keys = [key.lower() for key in written]
    depth = len(_find_fields(keys))
    return [*keys[:depth], *(key.lower() if key.isupper() else key for key in written[depth:])]


def _explain_variable(name: str) -> str:
    known = [
        f"{ENVIRONMENT_PREFIX}{key.replace('.', '__').upper()}" for key in _list_keys(StreamConfig)
    ]
    nearest = difflib.get_close_matches(name.upper(), [*known, *_OTHER_VARIABLES], n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return (
        f"the environment variable {name} names no key of the configuration; {hint}Two underscores "
        f"stand for each dot of a key: {ENVIRONMENT_PREFIX}KAFKA__SUBSCRIBE is kafka.subscribe"
    )


def _list_keys(section: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if (inner := _as_section(field.annotation)) is not None:
            yield from _list_keys(inner, f"{prefix}{name}.")


def _from_override(override: str) -> Setting:
    key, equals, value = override.partition("=")
    if not equals:
        # What follows the key may be a secret.
        key = re.split(r"[^\w.-]", override)[0]
        raise ConfigError(f"--set takes key=value, as kafka.subscribe=images; not '{key}'")
    keys = _split_key(key.strip())
    return keys, _read_value(key.strip(), value, keys)


def _read_value(name: str, value: str, keys: Sequence[str]) -> object:
    """The value that stands outside a file for a key: a text as written, anything else in YAML.

    Of a text only quotes are YAML's, null, and a text that is a truth value.
    """
    text, subject = value.strip(), f"the value of {name}"
    if not _takes_text(keys) or text.lower() in _NULLS:
        return read_yaml(value, subject)
    try:
        read = read_yaml(value, subject)
    except ConfigError:
        return text
    is_quoted = isinstance(read, str) and text[0] in "'\""
    return read if is_quoted or read == text else text


def _takes_text(keys: Sequence[str]) -> bool:
    """Whether the value of a key is a text, or that of a name in a map of texts."""
    fields = _find_fields(keys)
    annotation = fields[-1].annotation if fields else None
    if len(keys) == len(fields) + 1 and get_origin(annotation) is dict:
        return _is_text(get_args(annotation)[1])
    return len(keys) == len(fields) and _is_text(annotation)


def _find_fields(keys: Sequence[str]) -> list[FieldInfo]:
    """The fields that the keys lead to, one inside the other, as far as there are some."""
    section: type[BaseModel] | None = StreamConfig
    found: list[FieldInfo] = []
    for name in keys:
        field = section.model_fields.get(name) if section else None
        if field is None:
            break
        found.append(field)
        section = _as_section(field.annotation)
    return found


def _split_key(key: str) -> list[str]:
    """Split at dots, but leave whole the name of an option or a topic, which may have dots."""
    keys = key.split(".")
    fields = _find_fields(keys)
    if 0 < len(fields) < len(keys) and _may_be_map(fields[-1].annotation):
        return [*keys[: len(fields)], ".".join(keys[len(fields) :])]
    return keys


def _as_section(annotation: object) -> type[BaseModel] | None:
    """The model of a section, of one that may be left out too."""
    for choice in (annotation, *get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _is_text(annotation: object) -> bool:
    """Whether a text belongs there, or one that may be left out."""
    inner = get_args(annotation)
    choices = inner if type(None) in inner else (annotation,)
    return any(
        choice is str
        or (get_origin(choice) is Annotated and get_args(choice)[0] in (str, str | SecretStr))
        for choice in choices
    )


def _may_be_map(annotation: object) -> bool:
    return any(get_origin(choice) is dict for choice in (annotation, *get_args(annotation)))


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


# What pydantic says of these is about Python.
_WORDS = {
    "dict_type": "should be a map, as {name: value}",
    "list_type": "should be a list, as [one, other]",
    "model_type": "should be a section with keys of its own",
    "string_type": "should be a text",
    "tuple_type": "should be a list, as [one, other]",
}


def _explain_one(problem: Any, tree: Mapping[str, Any]) -> str:
    location = [part for part in problem["loc"] if part in _known_parts(tree, problem["loc"])]
    key = ".".join(map(str, location)) or "configuration"
    match problem["type"]:
        case "extra_forbidden":
            return f"  {key}: unknown key; {_choices(location)}"
        case "missing":
            return f"  {'.'.join(map(str, problem['loc']))}: required, but not given"
        case "value_error":
            # An error of several sections names their keys itself.
            subject = f"{key}: " if location else ""
            return f"  {subject}{problem['ctx']['error']}"
        case _:
            message = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Input ")
            shown = _shown(problem["type"], location, _value_at(tree, location))
            return f"  {key}: {message}{shown}"


def _shown(problem: str, location: Sequence[str | int], value: object) -> str:
    """A wrong value as a message repeats it: only a plain one, where no options belong.

    Any other may hold a secret in plain text.
    """
    options = problem == "model_type" or "options" in location
    plain = isinstance(value, str | int | float | None)
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
    fields = _find_fields([str(part) for part in location[:-1]])
    section = (_as_section(fields[-1].annotation) if fields else None) or StreamConfig
    known = list(section.model_fields)
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"{hint}known: {', '.join(known)}"
