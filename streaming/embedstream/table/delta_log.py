"""The Delta log of a table: its broken entries, and the streaming queries that wrote to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import SparkSession

from embedstream.spark.folder import Folder, UnreadableFile

__all__ = ["LogProblem", "Writer", "log_problems", "writers"]

_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..*parquet")


@dataclass(frozen=True, slots=True)
class Writer:
    """A streaming query that wrote to the table: its last micro-batch there, and when."""

    batch: int
    updated_ms: int


@dataclass(frozen=True, slots=True)
class LogProblem:
    """An entry of the log that is missing, or that Delta cannot read."""

    version: int
    reason: str
    is_missing: bool
    is_last: bool

    @property
    def file(self) -> str:
        """The entry's path in the table's folder."""
        return f"_delta_log/{self.version:020}.json"


def log_problems(table: Folder, *, thorough: bool) -> list[LogProblem]:
    """Find the broken and the missing entries of a table's log.

    Unless `thorough`, read only the entries that Delta reads to open the table: those after the
    log's last checkpoint.
    """
    log = table.folder("_delta_log")
    sizes = log.sizes()
    entries = {int(m[1]): name for name in sizes if (m := _ENTRY.fullmatch(name))}
    checkpoint = max((int(m[1]) for name in sizes if (m := _CHECKPOINT.match(name))), default=-1)
    first = min(entries, default=0) if thorough and checkpoint >= 0 else checkpoint + 1
    last = max(entries, default=-1)
    problems = []
    for version in range(first, last + 1):
        if name := entries.get(version):
            reason = _find_damage(log, name) if sizes[name] else "is empty"
        else:
            reason = "is missing between its neighbours"
        if reason:
            problems.append(LogProblem(version, reason, not name, version == last))
    return problems


def _find_damage(log: Folder, name: str) -> str | None:
    try:
        for line in (log.read(name) or "").splitlines():
            json.loads(line)
    except UnreadableFile as error:
        return f"cannot be read ({error})"
    except ValueError:
        return "is cut short"
    return None


def writers(spark: SparkSession, path: str) -> Mapping[str, Writer]:
    """Return the streaming queries that the table's log knows, by id; none if there is no table.

    The log must have no problems.
    """
    jvm: Any = spark.sparkContext._jvm
    session: Any = spark._jsparkSession
    nothing = jvm.scala.Option.empty()
    snapshot = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(session, path).update(
        False, nothing, nothing
    )
    found = {}
    transactions = snapshot.setTransactions()
    for number in range(transactions.size()):
        transaction = transactions.apply(number)
        updated = transaction.lastUpdated()
        updated_ms = updated.get() if updated.isDefined() else 0
        found[transaction.appId()] = Writer(transaction.version(), updated_ms)
    return found
