"""What a table's folder holds beside its newest version, and which earlier versions can be read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from posixpath import basename
from typing import Any
from urllib.parse import unquote

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from embedstream.spark.folder import Folder
from embedstream.spark.hadoop import locate
from embedstream.table.delta_log import read_snapshot

__all__ = ["Leftovers", "find_leftovers", "read_retention"]

_ACTIONS = "add struct<path: string>, remove struct<path: string, deletionTimestamp: bigint>"
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..*parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """The data files in a table's folder that its newest version, `version`, does not use.

    `changes` of the `files` are of the change data feed. `readable` are the earlier versions whose
    files are all there, as ranges with both ends. From `until` on, VACUUM with the table's own
    retention deletes all of the files; None if there are none.
    """

    version: int
    files: int
    bytes: int
    changes: int
    readable: Sequence[tuple[int, int]]
    until: datetime | None


@dataclass(frozen=True, slots=True)
class _File:
    bytes: int
    modified_ms: int
    is_change: bool


@dataclass(frozen=True, slots=True)
class _Action:
    """A file that a version adds, or removes at a time."""

    version: int
    name: str
    removed_ms: int | None


def find_leftovers(spark: SparkSession, path: str) -> Leftovers:
    """List the table's folder, and compare it with the table's log.

    A file that a running stream has written and not committed yet counts too.
    """
    # Listed before the log is read, so that what is committed in between is not listed.
    present = dict(_list_data_files(spark, path))
    version = int(read_snapshot(spark, path).version())
    live = spark.read.format("delta").load(path).inputFiles()
    used = {basename(unquote(one)) for one in live}
    left = {name: file for name, file in present.items() if name not in used}
    actions = _read_actions(spark, path)
    removed_ms = {one.name: one.removed_ms or 0 for one in actions}
    latest_ms = [max(file.modified_ms, removed_ms.get(name, 0)) for name, file in left.items()]
    until = None
    if latest_ms:
        until = datetime.fromtimestamp(max(latest_ms) / 1000, UTC) + read_retention(spark, path)
    first = _find_first_version(spark, path)
    return Leftovers(
        version=version,
        files=len(left),
        bytes=sum(file.bytes for file in left.values()),
        changes=sum(file.is_change for file in left.values()),
        readable=_find_readable(actions, present.keys(), first=first, end=version),
        until=until,
    )


def read_retention(spark: SparkSession, path: str) -> timedelta:
    """Return how long VACUUM keeps a file after the table has stopped using it."""
    jvm: Any = spark.sparkContext._jvm
    metadata = read_snapshot(spark, path).metadata()
    log = jvm.org.apache.spark.sql.delta.DeltaLog
    return timedelta(milliseconds=log.tombstoneRetentionMillis(metadata))


def _list_data_files(spark: SparkSession, path: str) -> Iterator[tuple[str, _File]]:
    """Yield the Parquet files in the folder by name, those of the change data feed too.

    Delta's names are unique. Its log and embedstream's own folder are left out.
    """
    with locate(spark, path) as (system, root):
        folders = [(root, False)]
        while folders:
            folder, is_change = folders.pop()
            for status in system.listStatus(folder):
                name = status.getPath().getName()
                if status.isDirectory():
                    if name == "_change_data" or not name.startswith(("_", ".")):
                        folders.append((status.getPath(), is_change or name == "_change_data"))
                elif name.endswith(".parquet"):
                    yield name, _File(status.getLen(), status.getModificationTime(), is_change)


def _read_actions(spark: SparkSession, path: str) -> list[_Action]:
    """Return what the log's entries add and remove, in the order in which they apply."""
    reader = spark.read.schema(_ACTIONS).option("pathGlobFilter", "*.json")
    # Brackets in the table's path are no pattern.
    entries = reader.option("__globPaths__", "false").json(f"{path}/_delta_log")
    version = f.regexp_extract("_metadata.file_name", r"^(\d{20})\.json$", 1)
    changed = f.coalesce("add.path", "remove.path")
    rows = (
        entries.select(version.alias("version"), changed, "add.path", "remove.deletionTimestamp")
        .where((f.col("version") != "") & changed.isNotNull())
        .collect()
    )
    actions = [
        _Action(int(row[0]), basename(unquote(row[1])), None if row[2] else row[3] or 0)
        for row in rows
    ]
    # A version may replace a file by itself, with a deletion vector.
    return sorted(actions, key=lambda one: (one.version, one.removed_ms is None))


def _find_first_version(spark: SparkSession, path: str) -> int:
    """Return the first version that the log still describes."""
    names = Folder(spark, f"{path}/_delta_log").list_sizes()
    if f"{0:020}.json" in names:
        return 0
    return min((int(m[1]) for name in names if (m := _CHECKPOINT.match(name))), default=0)


def _find_readable(
    actions: Sequence[_Action], present: Container[str], *, first: int, end: int
) -> list[tuple[int, int]]:
    """Return the versions before `end` of which no file is missing, as ranges with both ends."""
    change: Counter[int] = Counter()
    since: dict[str, int] = {}
    for one in actions:
        if one.name in present:
            continue
        if one.removed_ms is None:
            since.setdefault(one.name, one.version)
        else:
            change[max(first, since.pop(one.name, first))] += 1
            change[max(first, one.version)] -= 1
    ranges: list[tuple[int, int]] = []
    missing = 0
    for version in range(first, end):
        missing += change[version]
        if missing:
            continue
        if ranges and ranges[-1][1] == version - 1:
            ranges[-1] = (ranges[-1][0], version)
        else:
            ranges.append((version, version))
    return ranges
