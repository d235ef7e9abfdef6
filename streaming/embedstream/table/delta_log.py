"""The Delta log of a table: its broken entries, and the streaming queries that wrote to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from embedstream.spark.errors import find_condition
from embedstream.spark.folder import Folder, UnreadableFile
from embedstream_core.errors import SetupError

__all__ = [
    "TableVersion",
    "Writer",
    "find_log_problems",
    "read_snapshot",
    "read_version",
    "read_writers",
    "refuse_catalog_managed",
]

_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..*parquet")


@dataclass(frozen=True, slots=True)
class Writer:
    """A streaming query that wrote to the table: its last micro-batch there, and when."""

    micro_batch: int
    updated_ms: int


class TableVersion(NamedTuple):
    """A version of a table, and when it was committed, in milliseconds since 1970."""

    number: int
    committed_ms: int


def find_log_problems(table: Folder, *, thorough: bool) -> list[str]:
    """Find the broken and the missing entries of a table's log: the file, the damage, the remedy.

    Unless `thorough`, read only the entries that Delta reads to open the table: those after the
    log's last checkpoint.
    """
    log = table.get_folder("_delta_log")
    sizes = log.list_sizes()
    entries = {int(m[1]): name for name in sizes if (m := _ENTRY.fullmatch(name))}
    checkpoint = max((int(m[1]) for name in sizes if (m := _CHECKPOINT.match(name))), default=-1)
    first = min(entries, default=0) if thorough and checkpoint >= 0 else checkpoint + 1
    last = max(entries, default=-1)
    problems = []
    for version in range(first, last + 1):
        file = f"{version:020}.json"
        remedy = (
            "determine which files make up the table after it; restore it from a copy, or start "
            "over with another table and checkpoint"
        )
        if version not in entries:
            damage = "is missing between its neighbours"
        elif damage := _find_damage(log, file, sizes[file]):
            if version == last:
                remedy = (
                    "open the table; it is the last entry, so its writer was interrupted: move it "
                    f"and its .crc files ({version:020}.crc, .{file}.crc) away, then run "
                    "`embedstream doctor` again to learn whether the checkpoint is ahead of the "
                    "table"
                )
        else:
            continue
        problems.append(f"_delta_log/{file} {damage}: Delta cannot {remedy}")
    return problems


def _find_damage(log: Folder, file: str, size: int) -> str:
    if size == 0:
        return "is empty"
    try:
        for line in (log.read(file) or "").splitlines():
            json.loads(line)
    except UnreadableFile as error:
        return f"cannot be read ({error})"
    except ValueError:
        return "is cut short"
    return ""


def read_snapshot(spark: SparkSession, path: str) -> Any:
    """Return Delta's own object of a table's newest version; its log must have no problems.

    Raises:
        SetupError: only the table's catalog knows its newest version.
    """
    jvm: Any = spark.sparkContext._jvm
    session: Any = spark._jsparkSession
    nothing = jvm.scala.Option.empty()
    try:
        log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(session, path)
        return log.update(False, nothing, nothing)
    except Py4JJavaError as error:
        refuse_catalog_managed(find_condition(error), path)
        raise


def refuse_catalog_managed(condition: str | None, table: str) -> None:
    """Raise SetupError if the condition of an error says that a table has `catalogManaged`."""
    if condition == "DELTA_PATH_BASED_ACCESS_TO_CATALOG_MANAGED_TABLE_BLOCKED":
        raise SetupError(
            f"the table '{table}' has the feature catalogManaged: its catalog alone knows its "
            "newest commits, which search, the index and the doctor read in the table's folder; "
            "use an external table, given by table.name and table.path"
        )


def read_version(spark: SparkSession, path: str) -> TableVersion:
    """Return the newest version of a table; its log must have no problems.

    Delta looks for entries after the version that it knows, which the stream's own commits are.
    """
    snapshot = read_snapshot(spark, path)
    return TableVersion(int(snapshot.version()), int(snapshot.timestamp()))


def read_writers(spark: SparkSession, path: str) -> Mapping[str, Writer]:
    """Return the streaming queries that the table's log knows, by id; none if there is no table.

    The log must have no problems.
    """
    found = {}
    transactions = read_snapshot(spark, path).setTransactions()
    for number in range(transactions.size()):
        transaction = transactions.apply(number)
        updated = transaction.lastUpdated()
        updated_ms = updated.get() if updated.isDefined() else 0
        found[transaction.appId()] = Writer(transaction.version(), updated_ms)
    return found
