"""Packages that only some features need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from embedstream_core.errors import MissingExtra

__all__ = ["is_installed", "require_extra"]


@contextmanager
def require_extra(extra: str, *, feature: str) -> Iterator[None]:
    """Enclose the imports of an extra's packages; raise MissingExtra if one is not installed."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(feature=feature, extra=extra) from error


def is_installed(extra: str) -> bool:
    """Return whether the packages of an extra are installed; imports none of them."""
    for requirement in metadata.requires("embedstream") or ():
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and re.search(rf"extra == ['\"]{extra}['\"]", requirement):
            try:
                metadata.distribution(name[0])
            except metadata.PackageNotFoundError:
                return False
    return True
