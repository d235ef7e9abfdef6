"""The local path of weights, which `encoder.weights` gives as a path or a `file:` URI."""

from __future__ import annotations

import re
from pathlib import Path

from embedstream_core.errors import SetupError

__all__ = ["find_weights_path"]

_FILE_URI = re.compile(r"file:(?://(?:localhost)?)?(?=/)", re.IGNORECASE)
# One letter is a Windows drive, and a path like any other here.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def find_weights_path(weights: str) -> Path:
    """Return the path, which need not exist; `~` is the user's home folder.

    Raises:
        SetupError: the weights are on another file system.
    """
    path = _FILE_URI.sub("", weights, count=1)
    if _URI.match(path):
        raise SetupError(
            f"encoder.weights '{weights}' is an address: download the file, and give its path"
        )
    return Path(path).expanduser()
