"""Secrets in a configuration: where they may be given, and how they stay out of what is printed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, SecretStr, TypeAdapter, ValidationError

from embedstream.config.errors import ConfigError
from embedstream.config.yaml import BooleanText
from embedstream_core.redaction import NAMES_OF_SECRETS

__all__ = [
    "NAMES_OF_SECRET_SETTINGS",
    "Options",
    "Properties",
    "Secret",
    "SecretReference",
    "holds_secret",
    "resolve_options",
    "reveal",
]

# Two slashes make a URI, as in `spark.eventLog.dir`.
_WHOLE_REFERENCE = re.compile(r"^(env|file):(?!//)(.+)$")
_INNER_REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")

NAMES_OF_SECRET_SETTINGS = (
    f"{NAMES_OF_SECRETS}|application[-_.]?key|authorization|signature|user[.]info"
    "|([-_.](pass|pwd)|redis[.]auth)([.]|$)"
)
"""A pattern of the names of secret settings, which includes `NAMES_OF_SECRETS`."""

_SECRET_NAME = re.compile(NAMES_OF_SECRET_SETTINGS, re.IGNORECASE)
# Settings that hold no secret but its place, its lifetime or its provider.
_NOT_A_SECRET = re.compile(
    r"key(gen|provider|size)|secretkeyref|pullsecrets|[.]secrets[.]|[.]security[.]credentials[.]"
    r"|application_credentials$|tokeniz|client[.]id$"
    r"|(algorithm|binding|class|count|dir|duration|enabled|endpoint|expiry|file|impl|interval|itemkey|length"
    r"|location|mechanism|ms|name|path|provider|seconds?|size|source|style|timeout|type|ur[il])s?$",
    re.IGNORECASE,
)
# Settings of Azure's file systems may end with the account.
_AZURE_ACCOUNT = re.compile(r"(?<=fs\.azure\.)(.+)\.[^.]+\.(dfs|blob)\..+$", re.IGNORECASE)

_SECRET_IN_VALUE = re.compile(
    r"(passw(or)?d|passphrase|pwd|secret([-_.]?key)?|(access|account|api|private)[-_]?key|signature|[?&;]sig"
    r"|(access|auth|sas|session)[-_]?token)\s*=\s*['\"]?(?!\$\{)[^\s;'\"]"
    r"|\bbearer\s+(?!\$\{)\S{8}|-----BEGIN [A-Z ]*PRIVATE KEY"
    # A user and a password before a host; Oracle's drivers have a slash between them.
    r"|\b[a-z][a-z0-9+.-]*://[^/@\s,]*:(?!\$\{)[^/@\s,]+@|\bjdbc:oracle:\w+:[^/@\s]+/(?!\$\{)[^@\s]+@",
    re.IGNORECASE,
)


def holds_secret(name: str, value: str) -> bool:
    """Return whether a setting is a plain-text secret, by its name or by the form of its value."""
    if value.lower() in ("", "true", "false"):
        return False
    bare = _AZURE_ACCOUNT.sub(r"\1", name)
    # The dot ends `fs.azure.sas.CONTAINER`, whose account was removed.
    is_named = _SECRET_NAME.search(f"{bare}.") and not _NOT_A_SECRET.search(bare)
    # A pattern of secrets contains their names.
    is_in_value = not name.lower().endswith("regex") and _SECRET_IN_VALUE.search(value)
    return bool(is_named or is_in_value)


def reveal(options: Mapping[str, str | SecretStr]) -> dict[str, str]:
    """Return options with their secrets in clear, to hand to Kafka or Spark; never print them."""
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in options.items()
    }


def resolve_options(options: Mapping[str, object]) -> dict[str, str | SecretStr]:
    """Return options that are not from a file, with `env:` and `file:` references resolved.

    Raises:
        ConfigError: a reference leads nowhere, or a secret is in plain text; the message names each
            such option.
    """
    try:
        return TypeAdapter(Options).validate_python(options)
    except ValidationError as error:
        problems = [
            ": ".join([*map(str, problem["loc"]), problem["msg"].removeprefix("Value error, ")])
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigError("\n".join(problems)) from None


def _as_text(value: object) -> str:
    """Return a value as Kafka, Spark and Delta write it, whether YAML has a type for it or not."""
    if isinstance(value, BooleanText):
        value = value.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if value is None:
        raise ValueError("it has no value; write '' for an empty text, or leave it out")
    raise ValueError(
        f"its value must be a text, a number, true or false, not a {type(value).__name__}; write a "
        "name with dots as one key, as in `kafka.security.protocol: SSL`"
    )


def _resolve(value: object) -> str | SecretStr:
    """Replace `env:NAME` and `file:PATH`, alone or as `${env:NAME}` in a text, by a secret."""
    if isinstance(value, SecretStr):
        return value
    text = _as_text(value)
    if whole := _WHOLE_REFERENCE.match(text):
        return SecretStr(_read_reference(whole))
    if _INNER_REFERENCE.search(text):
        return SecretStr(_INNER_REFERENCE.sub(_read_reference, text))
    return text


def _read_reference(match: re.Match[str]) -> str:
    kind, name = match.groups()
    if kind == "env":
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"the file {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"the file {name} cannot be read: it is not UTF-8 text") from None


_IN_PLAIN_TEXT = (
    "in plain text; give it as env:NAME or file:PATH, or as ${env:NAME} within a longer value"
)


def _refuse_secrets(settings: dict[str, Any], *, reason: str) -> dict[str, Any]:
    for name, value in settings.items():
        if isinstance(value, str) and holds_secret(name, value):
            raise ValueError(f"'{name}' holds a secret{reason}")
    return settings


Options = Annotated[
    dict[str, Annotated[str | SecretStr, BeforeValidator(_resolve)]],
    AfterValidator(partial(_refuse_secrets, reason=f" {_IN_PLAIN_TEXT}")),
]
"""Settings of Spark or Kafka; a secret is given by reference."""

Properties = Annotated[
    dict[str, Annotated[str, BeforeValidator(_as_text)]],
    AfterValidator(
        partial(_refuse_secrets, reason=", which every reader of the table would see: leave it out")
    ),
]
"""Settings that anybody may see, and therefore no secrets."""


def _refuse_secret(value: str | SecretStr) -> SecretStr:
    if isinstance(value, str) and _SECRET_IN_VALUE.search(value):
        raise ValueError(f"it holds a secret {_IN_PLAIN_TEXT}")
    return SecretStr(value) if isinstance(value, str) else value


SecretReference = Annotated[
    SecretStr, BeforeValidator(lambda value: _refuse_secret(_resolve(value)))
]
"""A text that is never printed; if it holds a secret, it is given by reference."""


def _require_reference(value: object) -> SecretStr:
    resolved = _resolve(value)
    if isinstance(resolved, SecretStr):
        return resolved
    raise ValueError("it is a secret, so give it as env:NAME or file:PATH")


Secret = Annotated[SecretStr, BeforeValidator(_require_reference)]
"""A text that is never printed and always given by reference."""
