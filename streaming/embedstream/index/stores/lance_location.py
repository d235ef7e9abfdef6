"""Where LanceDB keeps an index: a table's or a configuration's location, as LanceDB reads it."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from embedstream.config.locations import find_local_path, get_scheme
from embedstream_core.errors import SetupError

__all__ = ["LanceLocation", "choose_location", "locate_index", "lock_folder"]

_INDEX_FOLDER = "_embedstream/index"
"""Within the table's folder; Delta's VACUUM leaves names alone that begin with an underscore."""

_LOCK_FILE = "writer.lock"
_AZURE = re.compile(
    r"(?:abfss?|wasbs?)://(?P<container>[^/@]+)@(?P<account>[^/.]+)\.[^/]*(?P<path>.*)"
)


@dataclass(frozen=True, slots=True)
class LanceLocation:
    """A location for `lancedb.connect`; `folder` is its path on a local disk, None for a bucket.

    Credentials come from the environment, by the names that cloud providers gave them.
    """

    uri: str
    folder: Path | None = None
    storage_options: Mapping[str, str] = field(default_factory=dict)


def choose_location(path: str | None, *, table: str) -> str:
    """Return `index.path`, or else a folder within the table's, as the configuration writes it."""
    return path or f"{table.rstrip('/')}/{_INDEX_FOLDER}"


def locate_index(path: str | None, *, table: str) -> LanceLocation:
    """Return the location of a table's index: `path`, or a folder within the table's by default.

    Raises:
        SetupError: LanceDB does not know that kind of file system.
    """
    location = choose_location(path, table=table)
    if (folder := find_local_path(location)) is not None:
        return LanceLocation(str(folder), folder=folder)
    scheme = get_scheme(location)
    rest = location.partition(":")[2]
    if scheme in ("s3", "s3a", "s3n"):
        return LanceLocation(f"s3:{rest}")
    if scheme == "gs":
        return LanceLocation(f"gs:{rest}")
    if azure := _AZURE.fullmatch(f"{scheme}:{rest}"):
        return LanceLocation(
            f"az://{azure['container']}{azure['path']}",
            storage_options={"account_name": azure["account"]},
        )
    raise SetupError(
        f"LanceDB cannot keep an index at '{location}'; set index.path to a folder of this "
        "machine or to an address with s3a://, gs:// or abfss://"
    )


def lock_folder(location: LanceLocation) -> Callable[[], None]:
    """Keep other writers out of a local index; return the function that lets them in again.

    The kernel frees the lock of a process that ends in any way. A bucket has no locks.

    Raises:
        SetupError: another process holds the lock, or the folder cannot be made.
    """
    if location.folder is None:
        return lambda: None
    try:
        location.folder.mkdir(parents=True, exist_ok=True)
        lock = (location.folder / _LOCK_FILE).open("a")
    except OSError as error:
        raise SetupError(f"the index at '{location.uri}' cannot be written: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SetupError(
            f"another process writes the index at '{location.uri}'; an index has one writer"
        ) from None
    return lock.close
