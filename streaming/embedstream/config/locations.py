"""Where a folder is: on a local disk, by its path, or on a file system of Spark's, by a URI."""

from __future__ import annotations

import re
from pathlib import Path

from embedstream_core.errors import SetupError

__all__ = ["LocationError", "absolute_location", "local_folder", "local_path", "scheme_of"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_STORES = {"abfs", "abfss", "gs", "s3", "s3a", "s3n", "wasb", "wasbs"}
_NO_COLON = re.compile(rf"(dbfs|file|hdfs|{'|'.join(sorted(_STORES))})//", re.IGNORECASE)
_PASSWORD = re.compile(r"//[^/@]*:[^/@]*@")


class LocationError(SetupError, ValueError):
    """A text is no location; the message says what to write."""


def scheme_of(location: str) -> str | None:
    """The scheme of a URI, in lower case; None for a path."""
    match = _SCHEME.match(location)
    return match[1].lower() if match else None


def absolute_location(location: str) -> str:
    """Make a path absolute, so that it does not depend on the working folder; keep a URI.

    A `file:` URI stays one: where Hadoop is set up, a path alone can be on HDFS.

    Raises:
        LocationError: it is no URI of a folder, or it holds a password.
    """
    if "\0" in location:
        raise LocationError("a location holds no NUL character")
    scheme = scheme_of(location)
    if scheme is None:
        if missing := _NO_COLON.match(location):
            raise LocationError(f"'{location}' lacks a colon: write {missing[1]}://…")
        return _make_absolute(location)
    if len(scheme) == 1:
        raise LocationError(
            f"'{location}' begins with a drive of Windows, of which Spark knows nothing; a local "
            f"folder of that name is './{location}'"
        )
    if scheme in ("http", "https"):
        raise LocationError(
            f"'{location}' is the address of a web server, where no table can be; write it as "
            "Spark does, as s3a://BUCKET/FOLDER or abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/"
            "FOLDER"
        )
    rest = location[len(scheme) + 1 :]
    if _PASSWORD.match(rest):
        raise LocationError("a location holds no password; give the credentials in spark.options")
    if scheme == "file":
        return f"file://{_read_file_uri(location, rest)}"
    if not rest.startswith("/"):
        raise LocationError(
            f"after '{scheme}:' comes a slash, and in '{location}' it does not; a local folder of "
            f"that name is './{location}'"
        )
    if scheme in _STORES and re.match(r"//[^/]", rest) is None:
        raise LocationError(f"'{location}' names no bucket: write {scheme}://BUCKET/FOLDER")
    if scheme in ("abfs", "abfss") and re.match(r"//[^/@]+@[^/@]", rest) is None:
        raise LocationError(
            f"'{location}' names no container and account: write {scheme}://CONTAINER@ACCOUNT.dfs."
            "core.windows.net/FOLDER"
        )
    return f"{scheme}:{rest}"


def local_folder(location: str) -> str:
    """The absolute path of a local folder or file, given as a path or a `file:` URI.

    Raises:
        LocationError: it is elsewhere.
    """
    path = local_path(absolute_location(location))
    if path is None:
        raise LocationError(f"'{location}' is on no local disk: write the path of a local one")
    return str(path)


def local_path(location: str) -> Path | None:
    """The path of an absolute location on a local disk; None for one that is elsewhere.

    As in Hadoop, `%20` in a `file:` URI stands for itself.
    """
    is_local = scheme_of(location) in (None, "file")
    return Path(location.removeprefix("file://")) if is_local else None


def _read_file_uri(location: str, rest: str) -> str:
    host, slash, path = rest.removeprefix("//").partition("/")
    if not slash or host not in ("", "localhost"):
        raise LocationError(f"'{location}' is no absolute path: write it as file:///FOLDER")
    return _make_absolute(f"/{path}")


def _make_absolute(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        raise LocationError(f"the user of '{path}' has no home folder here") from None
