"""Load a configuration from YAML, the environment and `--set`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from embedstream.config.errors import ConfigError
from embedstream.config.explain import explain_invalid, explain_variable
from embedstream.config.keys import find_listed, find_map, follow_keys, takes_text
from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.config.yaml import read_yaml

__all__ = ["load_config", "load_files_config"]

ENVIRONMENT_PREFIX = "EMBEDSTREAM_"
_RESEMBLES_OURS = re.compile(r"embedstream[_.-]", re.IGNORECASE)

# Other variables with that prefix, and the purpose of each.
_OTHER_VARIABLES: Mapping[str, str] = {
    "EMBEDSTREAM_JARS": "the folder of the jars",
    "EMBEDSTREAM_AUTO_PRECISION": "the precision that `auto` takes",
    "EMBEDSTREAM_WORKER_ENCODERS": "what workers import before they are forked",
    "EMBEDSTREAM_SEED": "the chance of a test of faults",
    "EMBEDSTREAM_SOAK_MINUTES": "how long the soak test runs",
    "EMBEDSTREAM_SOAK_RESULTS": "where the soak test keeps its samples",
}

# Kubernetes sets such variables in each container for each service, which may be embedstream.
_KUBERNETES_VARIABLE = re.compile(
    r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$"
)

_NULLS = ("", "~", "null")


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
) -> StreamConfig:
    """Read a YAML file; the environment wins over the file, and `overrides` over both.

    An override is `key=value` with a dotted key, `kafka.subscribe=images`; its environment variable
    is `EMBEDSTREAM_KAFKA__SUBSCRIBE`. Values are YAML, but the value of a text is taken literally.

    Raises:
        ConfigError: for every problem at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not YAML: it is not UTF-8 text") from None
    tree = read_yaml(text, f"the configuration {path}")
    if not isinstance(tree, dict):
        raise ConfigError(f"the configuration {path} holds no keys; see conf/local.yaml")
    variables = _read_environment(os.environ if environment is None else environment)
    _assign(tree, [*variables, *map(_read_override, overrides)])
    try:
        return StreamConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain_invalid(error, str(path), tree, model=StreamConfig)) from None


def load_files_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> BulkFilesConfig:
    """Return the settings of `embedstream batch` from a tree, over which `overrides` win.

    Raises:
        ConfigError: for every problem at once.
    """
    _assign(tree, map(_read_override, overrides))
    try:
        return BulkFilesConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain_invalid(error, "--set", tree, model=BulkFilesConfig)) from None


def _assign(tree: dict[str, Any], settings: Iterable[tuple[list[str], Any]]) -> None:
    """Set values in a tree; a map is merged into the map that it overrides."""
    for keys, value in settings:
        section: Any = tree
        for depth in range(1, len(keys)):
            _, types = follow_keys(keys[:depth])
            kind = list if keys[depth].isdigit() and find_listed(types) else dict
            place = _find_place(section, keys[:depth])
            if not isinstance(section[place], kind):
                section[place] = kind()
            section = section[place]
        place = _find_place(section, keys)
        old = section[place]
        if isinstance(old, dict) and isinstance(value, dict):
            value = {**old, **value}
        section[place] = value


def _find_place(section: Any, keys: Sequence[str]) -> str | int:
    """Return the last key's place in a map, or in a list of sections; add it if it is absent.

    Raises:
        ConfigError: the list is shorter.
    """
    if isinstance(section, dict):
        section.setdefault(keys[-1], None)
        return keys[-1]
    index = int(keys[-1])
    if index > len(section):
        raise ConfigError(
            f"{'.'.join(keys)}: {'.'.join(keys[:-1])} has {len(section)} entries, counted from 0"
        )
    if index == len(section):
        section.append(None)
    return index


def _read_environment(environment: Mapping[str, str]) -> Iterator[tuple[list[str], Any]]:
    for name, value in sorted(environment.items()):
        if not _RESEMBLES_OURS.match(name) or name in _OTHER_VARIABLES:
            continue
        written = name.removeprefix(ENVIRONMENT_PREFIX).split("__")
        depth, types = follow_keys([key.lower() for key in written])
        if name.startswith(ENVIRONMENT_PREFIX) and (depth == len(written) or find_map(types)):
            # Below a map the keys are names of options and topics, whose case matters, unless the
            # whole variable is in capitals, as is usual.
            below = (key.lower() if key.isupper() else key for key in written[depth:])
            keys = [*(key.lower() for key in written[:depth]), *below]
            yield keys, _read_value(name, value, keys)
        elif not _KUBERNETES_VARIABLE.search(name):
            raise ConfigError(explain_variable(name, ENVIRONMENT_PREFIX, _OTHER_VARIABLES))


def _read_override(override: str) -> tuple[list[str], Any]:
    name, equals, value = override.partition("=")
    if not equals:
        # The text after the key may be a secret.
        key = re.split(r"[^\w.-]", override)[0]
        raise ConfigError(f"--set takes key=value, as kafka.subscribe=images; not '{key}'")
    keys = name.strip().split(".")
    depth, types = follow_keys(keys)
    if depth < len(keys) and find_map(types):
        # The name of an option or a topic may have dots.
        keys = [*keys[:depth], ".".join(keys[depth:])]
    return keys, _read_value(name.strip(), value, keys)


def _read_value(name: str, value: str, keys: Sequence[str]) -> object:
    """Read a value that is not from a file: a text literally, anything else as YAML.

    For a text, YAML decides only on quotes, null and booleans.
    """
    text, subject = value.strip(), f"the value of {name}"
    if not takes_text(keys) or text.lower() in _NULLS:
        return read_yaml(value, subject)
    try:
        read = read_yaml(value, subject)
    except ConfigError:
        return text
    is_quoted = isinstance(read, str) and text[0] in "'\""
    return read if is_quoted or read == text else text
