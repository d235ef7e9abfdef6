"""The Delta log of a table: which of its files are wrong, and which query wrote last."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
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
    """An entry of the log that Delta cannot use, or that is not there."""

    version: int
    reason: str
    is_missing: bool
    is_last: bool

    @property
    def file(self) -> str:
        return f"_delta_log/{self.version:020}.json"


def log_problems(table: Folder, *, thorough: bool) -> list[LogProblem]:
    """What is wrong in the log; not `thorough`, only with what Delta reads to open the table."""
    names = table.folder("_delta_log").sizes()
    entries = {int(match[1]): names[name] for name in names if (match := _ENTRY.fullmatch(name))}
    checkpoint = max((int(m[1]) for name in names if (m := _CHECKPOINT.match(name))), default=-1)
    if not entries:
        return []
    last = max(entries)
    first = min(entries) if thorough and checkpoint >= 0 else checkpoint + 1
    return [
        LogProblem(version, reason, is_missing=version not in entries, is_last=version == last)
        for version in range(first, last + 1)
        if (reason := _reason(table, version, entries.get(version)))
    ]


def _reason(table: Folder, version: int, size: int | None) -> str | None:
    if size is None:
        return "is missing between its neighbours"
    if size == 0:
        return "is empty"
    try:
        text = table.read(f"_delta_log/{version:020}.json") or ""
        for line in text.splitlines():
            json.loads(line)
    except UnreadableFile as error:
        return f"cannot be read ({error})"
    except ValueError:
        return "is cut short"
    return None


def writers(spark: SparkSession, path: str) -> Mapping[str, Writer]:
    """The streaming queries that the table knows, by their ids; none where there is no table.

    The log must be without problems.
    """
    jvm: Any = spark.sparkContext._jvm
    session: Any = spark._jsparkSession
    log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(session, path)
    nothing = jvm.scala.Option.empty()
    snapshot = log.update(False, nothing, nothing)
    return dict(_transactions(snapshot.setTransactions()))


def _transactions(found: Any) -> Iterator[tuple[str, Writer]]:
    for number in range(found.size()):
        transaction = found.apply(number)
        updated = transaction.lastUpdated()
        yield (
            transaction.appId(),
            Writer(transaction.version(), updated.get() if updated.isDefined() else 0),
        )
