"""The files of a folder on any file system that Spark knows: checkpoints, Delta logs, claims."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyspark.sql import SparkSession

from embedstream.spark.errors import find_root_cause
from embedstream.spark.hadoop import locate
from embedstream_core.atomic_files import open_draft, replace_file
from embedstream_core.errors import EmbedstreamError, SetupError

__all__ = ["OWN_FOLDER", "Folder", "UnreadableFile"]

Parsed = TypeVar("Parsed")

OWN_FOLDER = "_embedstream"
"""The folder of embedstream's own files, next to those of Spark and Delta.

Delta ignores names that begin with an underscore, and VACUUM leaves them alone.
"""

# Here Hadoop refuses no second writer: one process's Delta commit could replace another's.
_WITHOUT_EXCLUSIVE_CREATE = {"file", "s3", "s3a", "s3n"}

# HDFS and local disks refuse a second file by themselves; object stores only with this option.
_CONDITIONAL_CREATE = "fs.option.create.conditional.overwrite"


class UnreadableFile(EmbedstreamError):
    """A file exists, but the file system does not return its text; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, which need not exist.

    On local disks and object stores a file that is written appears whole or not at all.

    Every method raises SetupError if Spark has no file system for the location or cannot reach it.
    """

    spark: SparkSession
    location: str

    def check_reachable(self) -> None:
        """Check that the file system answers; the folder need not exist."""
        with locate(self.spark, self.location) as (system, path):
            system.exists(path)

    def is_on_disk(self) -> bool:
        """Return whether the folder is on a local disk."""
        with locate(self.spark, self.location) as (system, path):
            return _find_on_disk(system, path) is not None

    def get_folder(self, name: str) -> Folder:
        """Return a folder inside this one."""
        return Folder(self.spark, f"{self.location}/{name}")

    def has_exclusive_create(self) -> bool:
        """Return whether the file system refuses one of two processes that create the same file."""
        with locate(self.spark, self.location) as (system, _):
            return system.getUri().getScheme() not in _WITHOUT_EXCLUSIVE_CREATE

    def make_private(self) -> None:
        """Create a local folder if there is none, for its owner alone.

        On other file systems, writing the first file creates the folder with the store's own
        permissions.
        """
        with locate(self.spark, self.location) as (system, path):
            if (local := _find_on_disk(system, path)) is not None:
                _make_private(local)

    def list_sizes(self) -> dict[str, int]:
        """Return the names in the folder with their bytes, without hidden ones; {} if absent."""
        with locate(self.spark, self.location) as (system, path):
            listed = system.listStatus(path) if system.exists(path) else ()
            found = {status.getPath().getName(): status.getLen() for status in listed}
        return {name: size for name, size in found.items() if not name.startswith(".")}

    def read(self, name: str) -> str | None:
        """Return the text of a file; None if there is no file.

        Raises:
            UnreadableFile: the file exists, but its text cannot be read.
        """
        with locate(self.spark, self.location, name) as (system, path):
            has_failed = False
            while system.exists(path):
                try:
                    with closing(system.open(path)) as stream:
                        return bytes(stream.readAllBytes()).decode()
                except UnicodeDecodeError:
                    raise UnreadableFile("it is not UTF-8 text") from None
                except Exception as error:
                    # Another process may have deleted or replaced the file in between.
                    if has_failed:
                        raise UnreadableFile(find_root_cause(error)) from None
                    has_failed = True
        return None

    def parse(
        self, name: str, read: Callable[[str], Parsed], *, meaning: str, remedy: str
    ) -> Parsed | None:
        """Return what `read` makes of a file's text; None if there is no file.

        Raises:
            SetupError: the file is damaged; the message says what it means and what to do.
        """
        try:
            text = self.read(name)
            return None if text is None else read(text)
        except (UnreadableFile, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SetupError(
                f"{self.location}/{name}, {meaning}, cannot be read ({error}); {remedy}"
            ) from None

    def create(self, name: str, text: str) -> bool:
        """Write a new file; return False, and leave the file as it is, if there is one already.

        If two processes try at once, one succeeds. On an object store without conditional writes
        both succeed, and the later text stays.
        """
        with locate(self.spark, self.location, name) as (system, path):
            if (local := _find_on_disk(system, path)) is not None:
                _make_parents_private(local)
                with open_draft(local) as draft:
                    draft.write(text.encode())
                try:
                    os.link(draft.name, local)
                except FileExistsError:
                    return False
                finally:
                    Path(draft.name).unlink()
                return True
            if system.exists(path):
                return False
            try:
                builder = system.createFile(path).overwrite(False).opt(_CONDITIONAL_CREATE, True)
                _write(builder.recursive().build(), text)
            except Exception:
                if system.exists(path):
                    return False
                raise
        return True

    def replace(self, name: str, text: str) -> None:
        """Write a file, whether it exists or not."""
        with locate(self.spark, self.location, name) as (system, path):
            if (local := _find_on_disk(system, path)) is None:
                _write(system.create(path, True), text)
                return
            _make_parents_private(local)
            replace_file(local, text.encode())
            # Hadoop's checksum of the old text would make the new one unreadable.
            local.with_name(f".{local.name}.crc").unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a file; an absent file is not an error."""
        with locate(self.spark, self.location, name) as (system, path):
            system.delete(path, False)

    def remove_if_empty(self) -> None:
        """Remove the folder if it holds nothing but hidden files; an absent one is not an error."""
        with locate(self.spark, self.location) as (system, path):
            if system.exists(path) and not self.list_sizes():
                for status in system.listStatus(path):
                    system.delete(status.getPath(), False)
                system.delete(path, False)


def _find_on_disk(system: Any, path: Any) -> Path | None:
    """Return the path of a file on a local disk, which Python writes; None on other systems.

    Hadoop's local file system checks whether a file exists and then overwrites it.
    """
    return Path(path.toUri().getPath()) if system.getUri().getScheme() == "file" else None


def _make_parents_private(path: Path) -> None:
    _make_private(path.parent.parent)
    _make_private(path.parent)


def _make_private(folder: Path) -> None:
    """Create a folder that only its owner may enter, if there is none; its parents as usual."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _write(stream: Any, text: str) -> None:
    # Closing after a failed write would publish part of the text on an object store.
    stream.write(bytearray(text.encode()))
    stream.close()
