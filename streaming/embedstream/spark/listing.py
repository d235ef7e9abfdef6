"""List the files at a path, including those that Spark's own readers leave out.

Spark's file index skips names that begin with `_` or `.`, and reads `[`, `{` and the backslash in a
path as a pattern.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from embedstream.spark.connect import is_connect
from embedstream.spark.hadoop import locate
from embedstream_core.errors import SetupError

__all__ = ["Listing", "list_files", "read_binary_files"]

_log = logging.getLogger(__name__)

# What Spark, Delta and embedstream write next to data files.
_MARKERS = {"_SUCCESS", "_delta_log", "_embedstream", "_spark_metadata", "_temporary"}

_WILDCARDS = frozenset("*?[]{}")
_LOCAL_URI = re.compile(r"file:(?://(?:localhost)?)?(/.*)", re.IGNORECASE | re.DOTALL)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_ALTERNATIVES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files at a path, sorted.

    The names of local files are absolute paths, and `folder` is a folder above all of them. The
    names of other files are URIs as Hadoop writes them, with nothing escaped; `sizes` has their
    bytes, and Spark's readers find them at `spark_path`. `hidden` counts the files and folders that
    were left out, a folder and all below it as one.
    """

    files: tuple[str, ...]
    hidden: int = 0
    folder: str | None = None
    sizes: Mapping[str, int] | None = None
    spark_path: str = ""

    def build_references(self) -> list[str]:
        """Return references to the files, as the core fetches them."""
        if self.folder is not None:
            return [Path(file).as_uri() for file in self.files]
        return [re.sub("^s3a:", "s3:", file) for file in self.files]


def list_files(spark: SparkSession, path: str) -> Listing:
    """List a file, all files below a folder, or what a pattern matches.

    A path that exists as it is written is never a pattern. Names that begin with a dot and what
    Spark and Delta write next to data are left out, and counted. Over Spark Connect, Spark lists
    the files that no worker sees under an absolute path; it leaves out more.

    Raises:
        SetupError: there is nothing at the path, or it cannot be listed.
    """
    if _URI.match(path):
        # Hadoop does not know a scheme in capitals.
        scheme, _, rest = path.partition(":")
        path = f"{scheme.lower()}:{rest}"
    found = _list_over_connect(spark, path) if is_connect(spark) else _list_by_driver(spark, path)
    if found is None:
        raise SetupError(f"there is no file or folder '{path}', and no file matches it")
    return found


def read_binary_files(spark: SparkSession, spark_path: str) -> DataFrame:
    """Return files as Spark reads them, with `path` and `content` among the columns."""
    return spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(spark_path)


def _list_by_driver(spark: SparkSession, path: str) -> Listing | None:
    is_local = _LOCAL_URI.fullmatch(path) is not None
    if not _URI.match(path):
        # A path alone is on Hadoop's default file system.
        with locate(spark, "/") as (system, _):
            is_local = system.getUri().getScheme() == "file"
    if not is_local:
        with locate(spark, path) as (system, target):
            return _list_by_hadoop(system, target, path)
    try:
        return _list_local(path)
    except OSError as error:
        raise SetupError(
            f"the files at '{path}' cannot be listed: {error.strerror}: '{error.filename}'; make "
            "them readable, or give another path"
        ) from error


def _list_local(path: str) -> Listing | None:
    uri = _LOCAL_URI.fullmatch(path)
    names = [unquote(uri[1]), uri[1]] if uri else [path, str(Path(path).expanduser())]
    for name in map(os.path.abspath, names if path else ()):
        named = Path(name)
        if named.is_dir():
            return _list_below(named, [named])
        if named.exists():
            # The target of a link may be elsewhere, and that is the file that the caller means.
            return _list_below(named.resolve().parent, [named])
        if _WILDCARDS & set(name):
            # As in a shell, a wildcard matches no dot at the start of a name; in Path.glob it does.
            globs = _expand_alternatives(name)
            found = [Path(one) for plain in globs for one in glob.glob(plain)]  # noqa: PTH207
            if roots := [one for one in found if one.name not in _MARKERS]:
                above = takewhile(lambda part: not _WILDCARDS & set(part), named.parts)
                return _list_below(Path(*above), roots)
    return None


def _list_below(folder: Path, roots: Iterable[Path]) -> Listing:
    """List the files at and below the roots, all of them in `folder`; follow links."""

    def stop(error: OSError) -> NoReturn:
        raise error

    files: set[str] = set()
    hidden = 0
    for root in roots:
        if not root.is_dir():
            files.add(str(root))
            continue
        # A link may lead back to a folder above it: each folder is listed once.
        seen: set[tuple[int, int]] = set()
        for inner, folders, names in os.walk(root, onerror=stop, followlinks=True):
            status = Path(inner).stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            hidden += sum(map(_is_hidden, (*folders, *names)))
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            files.update(str(Path(inner, name)) for name in names if not _is_hidden(name))
    return Listing(tuple(sorted(files)), hidden, str(folder))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _MARKERS


def _expand_alternatives(pattern: str) -> list[str]:
    """Return the patterns that one with `{a,b}` stands for."""
    found = _ALTERNATIVES.search(pattern)
    if found is None:
        return [pattern]
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [one for part in found[1].split(",") for one in _expand_alternatives(start + part + end)]


def _list_by_hadoop(system: Any, target: Any, path: str) -> Listing | None:
    is_there = system.exists(target)
    matches = () if is_there else [status.getPath() for status in system.globStatus(target) or ()]
    roots = [target] if is_there else [one for one in matches if not _is_hidden(one.getName())]
    if not roots:
        return None
    hidden: set[str] = set()
    sizes: dict[str, int] = {}
    for root in roots:
        start = len(system.makeQualified(root).toString())
        files = system.listFiles(root, True)
        while files.hasNext():
            status = files.next()
            name = status.getPath().toString()
            # A file may be hidden by its own name or by that of a folder between it and the root.
            for part in re.finditer(r"[^/]+", name[start:]):
                if _is_hidden(part[0]):
                    hidden.add(name[: start + part.end()])
                    break
            else:
                sizes[name] = status.getLen()
    spark_path = re.sub(r"([*?\[\]{}\\])", r"\\\1", path) if is_there else path
    return Listing(tuple(sorted(sizes)), len(hidden), sizes=sizes, spark_path=spark_path)


def _list_over_connect(spark: SparkSession, path: str) -> Listing | None:
    """List by a worker, or else by Spark: a client of Spark Connect has no file system."""

    def walk(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            if (found := _list_local(path)) is not None:
                # Not all names are UTF-8.
                names = [os.fsencode(name) for name in (found.folder or "", *found.files)]
                hidden = pa.array([found.hidden] * len(names), pa.int64())
                yield pa.RecordBatch.from_arrays(
                    [pa.array(names, pa.binary()), hidden], ["name", "hidden"]
                )

    if path.startswith("/") or _LOCAL_URI.fullmatch(path):
        one = spark.range(0, 1, 1, 1)
        if rows := one.mapInArrow(walk, "name binary, hidden long").collect():
            folder, *files = (os.fsdecode(bytes(row.name)) for row in rows)
            return Listing(tuple(files), rows[0].hidden, folder)
    try:
        uris = read_binary_files(spark, path).inputFiles()
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        return None
    _log.warning("Spark lists '%s': it leaves out names that begin with _ or .", path)
    # As Spark writes them in its column `path`.
    sizes = {unquote(uri).replace("file:///", "file:/", 1): 0 for uri in uris}
    return Listing(tuple(sorted(sizes)), sizes=sizes, spark_path=path)
