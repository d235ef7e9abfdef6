"""Packages that only some encoders need."""

from __future__ import annotations

import importlib
from typing import Any

from embedstream_core.errors import MissingExtra

__all__ = ["require_extra"]


def require_extra(module: str, *, extra: str) -> Any:
    """Import a module that an extra brings, which is named like the encoder that needs it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(feature=f"encoder '{extra}'", extra=extra) from None
