"""Locations of folders: a path on a local disk, or a URI on a file system that Spark knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from embedstream.config.errors import LocationError

__all__ = [
    "check_literal",
    "find_local_path",
    "get_scheme",
    "make_absolute",
    "make_local",
    "make_readable_without_spark",
]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_STORES = {"abfs", "abfss", "gs", "s3", "s3a", "s3n", "wasb", "wasbs"}
_NO_COLON = re.compile(rf"(dbfs|file|hdfs|{'|'.join(sorted(_STORES))})//", re.IGNORECASE)
_BLOB_STORE = re.compile(r"(//[^/@]+@[^/.]+)\.blob\.(.*)")
_INSTEAD: Mapping[str, str] = {
    "dbfs": "give the address of the object store behind it, as s3a://, gs:// or abfss://",
    "hdfs": "give a folder on which it is mounted",
    "viewfs": "give a folder on which it is mounted",
}
# The forms of shells, of YAML tools and of `kafka.options`.
_VARIABLE = re.compile(r"\$\{[^}]*\}|\$\([^)]*\)|^\$\w+|\{\{.*?\}\}")
_PASSWORD = re.compile(r"//[^/@]*:[^/@]*@")


def get_scheme(location: str) -> str | None:
    """Return the scheme of a URI in lower case; None for a path."""
    match = _SCHEME.match(location)
    return match[1].lower() if match else None


def check_literal(location: str) -> str:
    """Return a location from a configuration, where some texts would become odd local folders.

    Raises:
        LocationError: it begins or ends with white space, or contains a variable.
    """
    if location != location.strip():
        raise LocationError(f"a location must not begin or end with white space: {location!r}")
    if variable := _VARIABLE.search(location):
        raise LocationError(f"'{variable[0]}' in a location is not replaced: write its value")
    return location


def make_absolute(location: str) -> str:
    """Return a path as an absolute one, which no working directory changes, and a URI as it is.

    A `file:` URI remains a URI: where Hadoop is configured, a path alone may be on HDFS.

    Raises:
        LocationError: the text is not a URI of a folder, or it contains a password.
    """
    if "\0" in location:
        raise LocationError("a location must not contain a NUL character")
    scheme = get_scheme(location)
    if scheme is None:
        if missing := _NO_COLON.match(location):
            raise LocationError(f"'{location}' lacks a colon: write {missing[1]}://…")
        return _expand(location)
    rest = location[len(scheme) + 1 :]
    if _PASSWORD.match(rest):
        raise LocationError(
            "a location must not contain a password; give the credentials in spark.options"
        )
    if scheme == "file":
        host, slash, path = rest.removeprefix("//").partition("/")
        if not slash or host not in ("", "localhost"):
            raise LocationError(f"'{location}' is not an absolute path: write file:///FOLDER")
        return f"file://{_expand(f'/{path}')}"
    _check_uri(location, scheme, rest)
    return f"{scheme}:{rest}"


def make_local(location: str) -> str:
    """Return the absolute path of a local folder or file, given as a path or a `file:` URI.

    Raises:
        LocationError: it is not on a local disk.
    """
    path = find_local_path(make_absolute(location))
    if path is None:
        raise LocationError(f"'{location}' is not on a local disk: write a local path")
    return str(path)


def make_readable_without_spark(location: str) -> str:
    """Return a table's location as `deltalake` reads it.

    It knows local folders, `s3a:`, `gs:` and `abfss:`; other schemes of the same stores are
    translated.

    Raises:
        LocationError: no library without Spark reads that file system, or the text is no location.
    """
    absolute = make_absolute(location)
    scheme, rest = get_scheme(absolute), absolute.partition(":")[2]
    match scheme:
        case None | "file" | "s3" | "s3a" | "gs" | "abfs" | "abfss":
            return absolute
        case "s3n":
            return f"s3a:{rest}"
        case "wasb" | "wasbs" if store := _BLOB_STORE.fullmatch(rest):
            return f"abfss:{store[1]}.dfs.{store[2]}"
    remedy = _INSTEAD.get(scheme, "copy it to a folder, or to s3a://, gs:// or abfss://")
    raise LocationError(f"'{location}' cannot be read without Spark: {remedy}")


def find_local_path(location: str) -> Path | None:
    """Return the path of an absolute location on a local disk; None for any other location.

    As in Hadoop, `%20` in a `file:` URI is not an escape.
    """
    is_local = get_scheme(location) in (None, "file")
    return Path(location.removeprefix("file://")) if is_local else None


def _check_uri(location: str, scheme: str, rest: str) -> None:
    """Raise LocationError for a URI that is not one of a folder which Spark can write to."""
    if len(scheme) == 1:
        raise LocationError(
            f"'{location}' begins with a Windows drive, which Spark does not know; for a local "
            f"folder of that name write './{location}'"
        )
    if scheme in ("http", "https"):
        raise LocationError(
            f"'{location}' is the address of a web server, which cannot hold a table; write it as "
            "Spark does, as s3a://BUCKET/FOLDER or abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/"
            "FOLDER"
        )
    if not rest.startswith("/"):
        raise LocationError(
            f"'{location}' needs a slash after '{scheme}:'; for a local folder of that name write "
            f"'./{location}'"
        )
    if scheme in _STORES and re.match(r"//[^/]", rest) is None:
        raise LocationError(f"'{location}' names no bucket: write {scheme}://BUCKET/FOLDER")
    if scheme in ("abfs", "abfss") and re.match(r"//[^/@]+@[^/@]", rest) is None:
        raise LocationError(
            f"'{location}' names no container and account: write {scheme}://CONTAINER@ACCOUNT.dfs."
            "core.windows.net/FOLDER"
        )


def _expand(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        raise LocationError(f"the user of '{path}' has no home folder on this machine") from None
