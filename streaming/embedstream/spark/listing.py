"""Which files lie at a path: all of them, also those that Spark's own readers leave out.

Spark's file index skips names that begin with `_` or `.`, and takes `[`, `{` and the backslash in a
path for a pattern.
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
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession

from embedstream.spark.connect import is_connect
from embedstream_core.errors import SetupError

__all__ = ["Listing", "binary_files", "list_files"]

_log = logging.getLogger(__name__)

# What Spark, Delta and embedstream write beside files of data.
_MARKERS = {"_SUCCESS", "_delta_log", "_embedstream", "_spark_metadata", "_temporary"}

_WILDCARDS = frozenset("*?[]{}")
_LOCAL_URI = re.compile(r"file:(?://(?:localhost)?)?(/.*)", re.IGNORECASE | re.DOTALL)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_ALTERNATIVES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files at a path, sorted.

    `folder` is given for local files: it lies above all of them. Their names are absolute paths;
    those of other files are URIs as Hadoop writes them, with nothing escaped, and `sizes` has
    their bytes. `spark_path` makes Spark's readers find these. `hidden` counts the files and
    folders that were left out, each folder with all below it as one.
    """

    files: tuple[str, ...]
    hidden: int = 0
    folder: str | None = None
    sizes: Mapping[str, int] | None = None
    spark_path: str = ""

    def references(self) -> list[str]:
        """References to the files, as the core fetches them."""
        if self.folder is not None:
            return [Path(file).as_uri() for file in self.files]
        return [re.sub("^s3a:", "s3:", file) for file in self.files]


def list_files(spark: SparkSession, path: str) -> Listing:
    """List a file, all files below a folder, or what a pattern matches.

    A path that exists as it is given is never a pattern. Names that begin with a dot and what
    Spark and Delta write beside data are left out, and counted. Over Spark Connect, files that no
    worker sees under an absolute path are listed by Spark, which leaves out more.

    Raises:
        SetupError: nothing is there, or it cannot be listed.
    """
    found = _list_over_connect(spark, path) if is_connect(spark) else _list_by_driver(spark, path)
    if found is None:
        raise SetupError(f"there is no file or folder '{path}', and no file matches it")
    return found


def binary_files(spark: SparkSession, spark_path: str) -> DataFrame:
    """Files as Spark reads them: `path` and `content`, among others."""
    return spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(spark_path)


def _list_by_driver(spark: SparkSession, path: str) -> Listing | None:
    try:
        if _is_local(spark, path):
            return _list_local(path)
        return _list_by_hadoop(spark, path)
    except OSError as error:
        raise _not_listed(path, error.strerror or str(error)) from error
    except Py4JJavaError as error:
        raise _not_listed(path, str(error.java_exception.getMessage())) from error
    except PySparkException as error:
        raise _not_listed(path, str(error).partition("\n")[0]) from error


def _not_listed(path: str, reason: str) -> SetupError:
    return SetupError(
        f"the files at '{path}' cannot be listed: {reason}; give a local path, or a URI of a file "
        "system that Spark is set up for, such as s3a://bucket/folder"
    )


def _is_local(spark: SparkSession, path: str) -> bool:
    if _URI.match(path):
        return _LOCAL_URI.fullmatch(path) is not None
    jvm: Any = spark.sparkContext._jvm
    default = jvm.org.apache.hadoop.fs.FileSystem.getDefaultUri(_hadoop_settings(spark))
    return str(default.getScheme()) == "file"


def _hadoop_settings(spark: SparkSession) -> Any:
    java_context: Any = spark.sparkContext._jsc
    return java_context.hadoopConfiguration()


def _list_local(path: str) -> Listing | None:
    uri = _LOCAL_URI.fullmatch(path)
    names = [unquote(uri[1]), uri[1]] if uri else [path, str(Path(path).expanduser())]
    for name in map(os.path.abspath, names if path else ()):
        named = Path(name)
        if named.is_dir():
            return _listing(named, [named])
        if named.exists():
            # Where it is a link, its target may lie elsewhere: that is what the caller asked for.
            return _listing(named.resolve().parent, [named])
        if roots := _matches(name):
            return _listing(_above(named), roots)
    return None


def _listing(folder: Path, roots: Iterable[Path]) -> Listing:
    files: set[str] = set()
    hidden = 0
    for root in roots:
        below, left_out = _walk(root) if root.is_dir() else ([root], 0)
        files.update(map(str, below))
        hidden += left_out
    return Listing(tuple(sorted(files)), hidden, str(folder))


def _walk(root: Path) -> tuple[list[Path], int]:
    """The files below a folder and how much is hidden; links are followed, each folder once."""
    files: list[Path] = []
    hidden = 0
    seen: set[tuple[int, int]] = set()
    for text, folders, names in os.walk(root, onerror=_fail, followlinks=True):
        folder = Path(text)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        hidden += sum(map(_is_hidden, (*folders, *names)))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        files += [folder / name for name in names if not _is_hidden(name)]
    return files, hidden


def _fail(error: OSError) -> None:
    reason = f"{error.strerror}: '{error.filename}'"
    raise OSError(error.errno, reason) from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _MARKERS


def _matches(pattern: str) -> list[Path]:
    """What a pattern matches, as in a shell: a wildcard matches no dot at a name's beginning."""
    if not _WILDCARDS & set(pattern):
        return []
    # Path.glob would match these too.
    found = [one for plain in _alternatives(pattern) for one in glob.glob(plain)]  # noqa: PTH207
    return [path for path in map(Path, found) if path.name not in _MARKERS]


def _alternatives(pattern: str) -> list[str]:
    """The patterns that one with `{a,b}` stands for."""
    found = _ALTERNATIVES.search(pattern)
    if found is None:
        return [pattern]
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [one for part in found[1].split(",") for one in _alternatives(start + part + end)]


def _above(pattern: Path) -> Path:
    """The folder above all that a pattern matches."""
    return Path(*takewhile(lambda part: not _WILDCARDS & set(part), pattern.parts))


def _list_by_hadoop(spark: SparkSession, path: str) -> Listing | None:
    jvm: Any = spark.sparkContext._jvm
    target = jvm.org.apache.hadoop.fs.Path(path)
    system = target.getFileSystem(_hadoop_settings(spark))
    is_there = system.exists(target)
    matches = () if is_there else [one.getPath() for one in system.globStatus(target) or ()]
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
            if (above := _hidden_part(name, start)) is None:
                sizes[name] = status.getLen()
            else:
                hidden.add(above)
    spark_path = re.sub(r"([*?\[\]{}\\])", r"\\\1", path) if is_there else path
    return Listing(tuple(sorted(sizes)), len(hidden), sizes=sizes, spark_path=spark_path)


def _hidden_part(name: str, start: int) -> str | None:
    """The file or folder for which a file is left out, none above its `start`."""
    for match in re.finditer(r"[^/]+", name[start:]):
        if _is_hidden(match[0]):
            return name[: start + match.end()]
    return None


def _list_over_connect(spark: SparkSession, path: str) -> Listing | None:
    """A client of Spark Connect has no file system: a worker lists what it sees."""
    if path.startswith("/") or _LOCAL_URI.fullmatch(path):
        found = _list_by_worker(spark, path)
        if found is not None:
            return found
    try:
        uris = binary_files(spark, path).inputFiles()
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        return None
    _log.warning("Spark lists '%s': names that begin with _ or . are left out", path)
    # As Spark writes them in its column `path`.
    sizes = {unquote(uri).replace("file:///", "file:/", 1): 0 for uri in uris}
    return Listing(tuple(sorted(sizes)), sizes=sizes, spark_path=path)


def _list_by_worker(spark: SparkSession, path: str) -> Listing | None:
    def walk(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            if (found := _list_local(path)) is not None:
                # Not all names are UTF-8.
                names = [os.fsencode(name) for name in (found.folder or "", *found.files)]
                hidden = pa.array([found.hidden] * len(names), pa.int64())
                yield pa.RecordBatch.from_arrays(
                    [pa.array(names, pa.binary()), hidden], ["name", "hidden"]
                )

    one = spark.range(0, 1, 1, 1)
    rows = one.mapInArrow(walk, "name binary, hidden long").collect()
    if not rows:
        return None
    folder, *files = (os.fsdecode(bytes(row.name)) for row in rows)
    return Listing(tuple(files), rows[0].hidden, folder)
