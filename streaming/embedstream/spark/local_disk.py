"""Local disks that a stream writes to: whether they are full or read-only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from embedstream.config.locations import find_local_path
from embedstream_core.errors import SetupError

__all__ = ["check_writable", "explain_disk_error"]

_RESUMES = "the stream resumes where it stopped, with no row lost or duplicated"


def check_writable(key: str, location: str) -> None:
    """Check that files may be written under a local location, which need not exist.

    Raises:
        SetupError: they may not.
    """
    folder = _find_existing_part(location)
    if folder is not None and not _is_writable(folder):
        raise SetupError(
            f"{key} '{location}' cannot be written: '{folder}' is not a folder that you may write "
            "to; make it one, or choose another path"
        )


def explain_disk_error(error: Exception, locations: Mapping[str, str]) -> str | None:
    """Return a sentence for an error that a full or read-only local disk caused, else None.

    `locations` maps each configuration key to the folder that it sets.
    """
    local = {key: part for key in locations if (part := _find_existing_part(locations[key]))}
    if local and "No space left on device" in f"{error} {getattr(error, '_stackTrace', '')}":
        free = {key: shutil.disk_usage(folder).free for key, folder in local.items()}
        key = min(free, key=free.__getitem__)
        return (
            f"the disk of {key} '{locations[key]}' is full ({free[key] / 2**20:.1f} MiB are free): "
            f"make room there and start again; {_RESUMES}"
        )
    for key, folder in local.items():
        if not _is_writable(folder):
            return (
                f"{key} '{locations[key]}' can no longer be written: make '{folder}' writable and "
                f"start again; {_RESUMES}"
            )
    return None


def _find_existing_part(location: str) -> Path | None:
    """Return the innermost existing part of a local location; None for any other location."""
    folder = find_local_path(location)
    # `Path.exists` raises for a folder that may not be searched; os.path says that it is absent.
    while folder is not None and not os.path.exists(folder):  # noqa: PTH110
        folder = folder.parent
    return folder


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
