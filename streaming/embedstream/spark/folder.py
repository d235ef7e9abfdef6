"""The files of a folder on any file system that Spark knows: checkpoints, Delta logs, claims."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from embedstream.config.locations import local_path, scheme_of
from embedstream.spark.java_errors import causes, root_cause
from embedstream_core.atomic_files import open_draft, replace_file
from embedstream_core.errors import EmbedstreamError, SetupError

__all__ = ["OWN_FOLDER", "Folder", "UnreadableFile", "check_writable", "disk_trouble"]

OWN_FOLDER = "_embedstream"
"""Where embedstream keeps files of its own beside Spark's and Delta's.

Delta ignores names that begin with an underscore, and VACUUM leaves them alone.
"""

_LETS_BOTH_WRITE = {"file", "s3", "s3a", "s3n"}

# HDFS and local disks refuse a second file by themselves; object stores only when they are asked.
_CONDITIONAL_CREATE = "fs.option.create.conditional.overwrite"

# What Hadoop raises where no jar has the file system of a scheme.
_NO_FILE_SYSTEM = {
    "UnsupportedFileSystemException",
    "ClassNotFoundException",
    "NoClassDefFoundError",
}

_WHERE_TO_FIND_IT: Mapping[str, str] = {
    "abfs": "hadoop-azure has it",
    "abfss": "hadoop-azure has it",
    "dbfs": "only Databricks has it",
    "gs": "Google's gcs-connector has it",
    "s3": "write s3a://, which embedstream fetches",
    "s3a": "add s3 to spark.jar_sets, which fetches it",
    "s3n": "write s3a://, which embedstream fetches",
    "wasb": "hadoop-azure has it",
    "wasbs": "hadoop-azure has it",
}

_GOES_ON = "the stream goes on where it stopped, without a row lost or doubled"


class UnreadableFile(EmbedstreamError):
    """The file system gives no text for a file that is there; the message says why."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, there or not. On a local disk a file that is written appears whole or not at all;
    so it does on object stores.

    Every method raises SetupError where Spark has no file system for the location, or cannot reach
    it.
    """

    spark: SparkSession
    location: str

    def check_reachable(self) -> None:
        """Ask for the folder, which need not be there.

        Raises:
            SetupError: Spark has no file system for the location, or cannot reach it.
        """
        with _translate_errors(self.location):
            self._files().exists(self._path())

    def folder(self, name: str) -> Folder:
        return Folder(self.spark, f"{self.location}/{name}")

    def keeps_writers_apart(self) -> bool:
        """Whether of two processes that create the same file one is refused."""
        with _translate_errors(self.location):
            return self._files().getUri().getScheme() not in _LETS_BOTH_WRITE

    def make_private(self) -> None:
        """Create it where there is none, on a local disk for its owner alone.

        Elsewhere whoever writes the first file creates it, as the store has it.
        """
        if (local := self._local("")) is not None:
            _make_private(local)

    def sizes(self) -> dict[str, int]:
        """The files and folders in it with their bytes, without hidden ones; none if not there."""
        with _translate_errors(self.location):
            path, files = self._path(), self._files()
            listed = files.listStatus(path) if files.exists(path) else ()
            found = {status.getPath().getName(): status.getLen() for status in listed}
        return {name: size for name, size in found.items() if not name.startswith(".")}

    def read(self, name: str) -> str | None:
        """The text of a file; None where there is none.

        Raises:
            UnreadableFile: the file is there, but not its text.
        """
        with _translate_errors(self.location):
            path, files = self._path(name), self._files()
            if not files.exists(path):
                return None
        try:
            stream = files.open(path)
            try:
                return bytes(stream.readAllBytes()).decode()
            finally:
                stream.close()
        except UnicodeDecodeError:
            raise UnreadableFile("it is no text in UTF-8") from None
        except Exception as error:
            raise _unreadable(error) from None

    def create(self, name: str, text: str) -> bool:
        """Write a file that is not there yet; False where there is one, which stays as it is.

        Of two that try at once, one succeeds. An object store without conditional writes lets
        both: the later one's text stays.
        """
        if (local := self._local(name)) is not None:
            return _create_local(local, text)
        with _translate_errors(self.location):
            path, files = self._path(name), self._files()
            if files.exists(path):
                return False
            try:
                builder = files.createFile(path).overwrite(False).opt(_CONDITIONAL_CREATE, True)
                _write(builder.recursive().build(), text)
            except Exception:
                if files.exists(path):
                    return False
                raise
        return True

    def replace(self, name: str, text: str) -> None:
        """Write a file, whether it is there or not."""
        if (local := self._local(name)) is not None:
            _replace_local(local, text)
            return
        with _translate_errors(self.location):
            _write(self._files().create(self._path(name), True), text)

    def delete(self, name: str) -> None:
        """Remove a file; fine if it is gone."""
        with _translate_errors(self.location):
            self._files().delete(self._path(name), False)

    def remove_if_empty(self) -> None:
        """Remove the folder and the hidden files in it, unless it holds any other; fine if gone."""
        with _translate_errors(self.location):
            path, files = self._path(), self._files()
            if files.exists(path) and not self.sizes():
                for status in files.listStatus(path):
                    files.delete(status.getPath(), False)
                files.delete(path, False)

    def _path(self, name: str = "") -> Any:
        jvm: Any = self.spark.sparkContext._jvm
        return jvm.org.apache.hadoop.fs.Path(f"{self.location}/{name}" if name else self.location)

    def _files(self) -> Any:
        java_context: Any = self.spark.sparkContext._jsc
        return self._path().getFileSystem(java_context.hadoopConfiguration())

    def _local(self, name: str) -> Path | None:
        # Hadoop's own local file system looks whether a file is there and then overwrites it.
        with _translate_errors(self.location):
            if self._files().getUri().getScheme() != "file":
                return None
            return Path(self._path(name).toUri().getPath())


@contextmanager
def _translate_errors(location: str) -> Iterator[None]:
    """Turn what Java raises over a location into a SetupError."""
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        kinds = {cause.getClass().getSimpleName() for cause in causes(error)}
        raise SetupError(explain_location(location, kinds, root_cause(error))) from error


def explain_location(location: str, kinds: set[str], told: str) -> str:
    """The sentence for a location over which Java raised exceptions of these kinds."""
    if kinds & _NO_FILE_SYSTEM:
        scheme = scheme_of(location) or ""
        hint = _WHERE_TO_FIND_IT.get(scheme, "some jar has it")
        return (
            f"Spark has no file system for '{location}' ({told}): {hint}; a jar is added with "
            "spark.jars or spark.jars.packages in spark.options, and `spark.jars: provided` says "
            "that the cluster has it"
        )
    # Hadoop takes the name of an unknown host for a wrong argument.
    if kinds & {"IllegalArgumentException"} and "UnknownHostException" not in kinds:
        return f"'{location}' is no location that Spark can read ({told}); correct it"
    return (
        f"'{location}' cannot be reached ({told}); correct it, or its credentials and address in "
        "spark.options (`spark.hadoop.fs.…`)"
    )


def check_writable(key: str, location: str) -> None:
    """That files may be written under a local location, there or not.

    Raises:
        SetupError: they may not.
    """
    folder = _local_folder(location)
    if folder is not None and not _is_writable(folder):
        raise SetupError(
            f"{key} '{location}' cannot be written: '{folder}' is no folder that you may write to; "
            "make it one, or choose another path"
        )


def disk_trouble(error: Exception, locations: Mapping[str, str]) -> str | None:
    """The sentence for an error whose reason is a local disk: full, or no longer to be written.

    `locations` are the folders that are written to, by the key that sets each.
    """
    local = {key: folder for key in locations if (folder := _local_folder(locations[key]))}
    if local and "No space left on device" in f"{error} {getattr(error, '_stackTrace', '')}":
        free = {key: shutil.disk_usage(folder).free for key, folder in local.items()}
        key = min(free, key=free.__getitem__)
        return (
            f"the disk of {key} '{locations[key]}' is full ({free[key] / 2**20:.1f} MiB are free): "
            f"make room there and start again; {_GOES_ON}"
        )
    for key, folder in local.items():
        if not _is_writable(folder):
            return (
                f"{key} '{locations[key]}' can no longer be written: make '{folder}' writable and "
                f"start again; {_GOES_ON}"
            )
    return None


def _local_folder(location: str) -> Path | None:
    """The innermost part of a local location that is there; None for one that is elsewhere."""
    folder = local_path(location)
    if folder is None:
        return None
    while not os.path.exists(folder):  # noqa: PTH110, for it takes what may not be seen as absent
        folder = folder.parent
    return folder


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _create_local(path: Path, text: str) -> bool:
    _make_private_parents(path)
    with open_draft(path) as draft:
        draft.write(text.encode())
    try:
        os.link(draft.name, path)
    except FileExistsError:
        return False
    finally:
        Path(draft.name).unlink()
    return True


def _replace_local(path: Path, text: str) -> None:
    _make_private_parents(path)
    replace_file(path, text.encode())
    # Hadoop's checksum of what stood there before would make the new text unreadable.
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


def _make_private_parents(path: Path) -> None:
    _make_private(path.parent.parent)
    _make_private(path.parent)


def _make_private(folder: Path) -> None:
    """Create a folder that only its owner may enter, where there is none; its parents as usual."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _write(stream: Any, text: str) -> None:
    stream.write(bytearray(text.encode()))
    stream.close()


def _unreadable(error: Exception) -> UnreadableFile:
    cause: Any = getattr(error, "java_exception", None)
    if cause is None or isinstance(error, PySparkException):
        return UnreadableFile(str(error).partition("\n")[0])
    return UnreadableFile(str(cause.getMessage() or cause.getClass().getSimpleName()))
