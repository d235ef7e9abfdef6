"""The form of a reference: what holds for every scheme, and for the target of a redirect."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from embedstream_core.fetch import verdicts

__all__ = ["MAX_CHARACTERS", "check_form", "split_reference"]

MAX_CHARACTERS: Final = 16_384
"""Of a reference. Web servers take 8 KB, signed URLs have up to 4; paths and keys are shorter."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CREDENTIALS = re.compile(r"([^:/?#@]*:)?(//)?[^/?#]*@")


def check_form(uri: str) -> None:
    """Raise REFERENCE_DENIED for what no scheme takes; quote nothing, it may hold a password."""
    if len(uri) > MAX_CHARACTERS:
        raise verdicts.denied(f"a reference has no more than {MAX_CHARACTERS} characters")
    if _CONTROL.search(uri):
        raise verdicts.denied("a reference has no control characters and no lone surrogates")
    if _CREDENTIALS.match(uri):
        raise verdicts.denied("a reference carries no user name or password: give it without")


def split_reference(uri: str) -> SplitResult:
    """Split a reference as `urlsplit` does. Raises REFERENCE_DENIED for what it refuses."""
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise verdicts.denied(
            "not a URL: its host or port cannot be read; write '[' and ']' as %5B and %5D"
        ) from error
