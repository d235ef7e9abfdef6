"""The rules that hold for references of every scheme, and for the targets of redirects."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from embedstream_core.fetch.errors import Denied

__all__ = ["check_form", "split_reference"]

# Web servers take 8 KB, signed URLs have up to 4; paths and keys are shorter.
_MAX_CHARACTERS: Final = 16_384
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CREDENTIALS = re.compile(r"([^:/?#@]*:)?(//)?[^/?#]*@")
# Azure's containers are named before the account's host.
_CONTAINER = re.compile(r"(abfss?|az)://[^:/?#@]+@[^/?#@]+(/|$)", re.IGNORECASE)


def check_form(uri: str) -> None:
    """Raise REFERENCE_DENIED for a text that no scheme accepts.

    The message quotes nothing, because the text may hold a password.
    """
    if len(uri) > _MAX_CHARACTERS:
        raise Denied(f"a reference must not have more than {_MAX_CHARACTERS} characters")
    if _CONTROL.search(uri):
        raise Denied("a reference must not contain control characters or lone surrogates")
    if _CREDENTIALS.match(uri) and not _CONTAINER.match(uri):
        raise Denied("a reference must not contain a user name or password: remove it")


def split_reference(uri: str) -> SplitResult:
    """Split a reference like `urlsplit`. Raise REFERENCE_DENIED where `urlsplit` fails."""
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise Denied(
            "not a URL: its host or port cannot be read; write '[' and ']' as %5B and %5D"
        ) from error
