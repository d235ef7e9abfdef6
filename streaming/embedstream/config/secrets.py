"""Secrets in a configuration: where one may stand, and how it is kept out of what is printed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr

from embedstream_core.redaction import NAMES_OF_SECRETS

__all__ = [
    "NAMES_OF_SECRET_SETTINGS",
    "Options",
    "Properties",
    "TruthText",
    "holds_secret",
    "revealed",
]

# Two slashes make a URI, such as `spark.eventLog.dir` takes.
_WHOLE_REFERENCE = re.compile(r"^(env|file):(?!//)(.+)$")
_INNER_REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")

NAMES_OF_SECRET_SETTINGS = (
    f"{NAMES_OF_SECRETS}|application[-_.]?key|authorization|signature|user[.]info"
    "|([-_.](pass|pwd)|redis[.]auth)([.]|$)"
)
"""What the names of settings hold that are secrets, as `NAMES_OF_SECRETS`."""

_SECRET_NAME = re.compile(NAMES_OF_SECRET_SETTINGS, re.IGNORECASE)
# Names of settings that hold no secret, but where it is, how long it lasts, or who makes it.
_OF_A_SECRET = re.compile(
    r"key(gen|provider|size)|secretkeyref|pullsecrets|[.]secrets[.]|[.]security[.]credentials[.]"
    r"|application_credentials$|tokeniz|client[.]id$"
    r"|(algorithm|binding|class|count|dir|duration|enabled|endpoint|expiry|file|impl|interval|itemkey|length"
    r"|location|mechanism|ms|name|path|provider|seconds?|size|source|style|timeout|type|ur[il])s?$",
    re.IGNORECASE,
)
# Settings of Azure's file systems end with the account that they are for.
_AZURE_ACCOUNT = re.compile(r"(?<=fs\.azure\.)(.+)\.[^.]+\.(dfs|blob)\..+$", re.IGNORECASE)

_SECRET_IN_VALUE = re.compile(
    r"(passw(or)?d|passphrase|pwd|secret([-_.]?key)?|(access|account|api|private)[-_]?key|signature|[?&;]sig"
    r"|(access|auth|sas|session)[-_]?token)\s*=\s*['\"]?(?!\$\{)[^\s;'\"]"
    r"|\bbearer\s+(?!\$\{)\S{8}|-----BEGIN [A-Z ]*PRIVATE KEY"
    # A user and a password before a host; Oracle's drivers have a slash between them.
    r"|\b[a-z][a-z0-9+.-]*://[^/@\s,]*:(?!\$\{)[^/@\s,]+@|\bjdbc:oracle:\w+:[^/@\s]+/(?!\$\{)[^@\s]+@",
    re.IGNORECASE,
)


class TruthText(str):
    """A truth value as YAML has it: `true`, `Yes`, `off`."""

    __slots__ = ()

    @property
    def truth(self) -> bool:
        """What it means."""
        return self.lower() in ("true", "yes", "on")


def holds_secret(name: str, value: str) -> bool:
    """Whether a setting is a secret in plain text, by its name or by what its value looks like."""
    if value.lower() in ("", "true", "false"):
        return False
    bare = _AZURE_ACCOUNT.sub(r"\1", name)
    # The dot ends `fs.azure.sas.CONTAINER`, whose account is gone.
    named = _SECRET_NAME.search(f"{bare}.") and not _OF_A_SECRET.search(bare)
    # A pattern of secrets holds their names.
    shown = not name.lower().endswith("regex") and _SECRET_IN_VALUE.search(value)
    return bool(named or shown)


def revealed(options: Mapping[str, str | SecretStr]) -> dict[str, str]:
    """Options with their secrets in clear, to hand to Kafka or Spark; never to print."""
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in options.items()
    }


def _as_text(value: object) -> str:
    """What YAML read as a number, true or false, as Kafka, Spark and Delta write it."""
    if isinstance(value, TruthText):
        value = value.truth
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if value is None:
        raise ValueError("it has no value; write '' for an empty text, or leave it out")
    raise ValueError(
        f"its value is a text, a number, true or false, not a {type(value).__name__}; write a "
        "name with dots as one key, as in `kafka.security.protocol: SSL`"
    )


def _resolve(value: object) -> str | SecretStr:
    """Replace `env:NAME` and `file:PATH`, alone or as `${env:NAME}` within, by a secret."""
    if isinstance(value, SecretStr):
        return value
    text = _as_text(value)
    if whole := _WHOLE_REFERENCE.match(text):
        return SecretStr(_referenced(*whole.groups()))
    if _INNER_REFERENCE.search(text):
        return SecretStr(_INNER_REFERENCE.sub(lambda match: _referenced(*match.groups()), text))
    return text


def _referenced(kind: str, name: str) -> str:
    if kind == "env":
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"the file {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"the file {name} cannot be read: it is no UTF-8 text") from None


def _refuse_plain_options(options: dict[str, str | SecretStr]) -> dict[str, str | SecretStr]:
    for name, value in options.items():
        if isinstance(value, str) and holds_secret(name, value):
            raise ValueError(
                f"'{name}' holds a secret in plain text; give it as env:NAME or file:PATH, or as "
                "${env:NAME} within a longer value"
            )
    return options


def _refuse_plain_properties(properties: dict[str, str]) -> dict[str, str]:
    for name, value in properties.items():
        if holds_secret(name, value):
            raise ValueError(
                f"'{name}' holds a secret, which whoever may read the table would see: leave it out"
            )
    return properties


_Property = Annotated[str, BeforeValidator(_as_text)]
_Option = Annotated[str | SecretStr, BeforeValidator(_resolve)]
Options = Annotated[dict[str, _Option], AfterValidator(_refuse_plain_options)]
"""Settings of Spark or Kafka, of which secrets are given by reference."""
Properties = Annotated[dict[str, _Property], AfterValidator(_refuse_plain_properties)]
"""Settings that anybody may see, and so no secret."""
