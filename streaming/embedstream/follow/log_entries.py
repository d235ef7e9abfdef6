"""Read the entries of a table's Delta log, one for each commit.

The format is the Delta protocol's, https://github.com/delta-io/delta/blob/master/PROTOCOL.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from embedstream.follow.table_files import TableFiles
from embedstream_core.errors import EmbedstreamError, SetupError

__all__ = [
    "CannotFollow",
    "Commit",
    "DataFile",
    "check_features",
    "check_schema",
    "find_last_version",
    "hash_commit",
    "is_column_mapped",
    "read_commit",
]

# What a reader has to know and this one does. Deletion vectors and column mapping are found where
# they are used; the others change neither data files nor commits.
_KNOWN_FEATURES = {
    "columnMapping",
    "deletionVectors",
    "timestampNtz",
    "v2Checkpoint",
}

_COLUMNS: Mapping[str, Any] = {
    "topic": "string",
    "partition": "integer",
    "offset": "long",
    "embedding": {"type": "array", "elementType": "float"},
    "model_id": "string",
}
"""The columns that every outcome table has, as a Delta schema writes their types."""


class CannotFollow(EmbedstreamError):
    """A commit cannot be turned into changes of what follows the table; the message says why."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of a table; its path is decoded, the values of its partition are not in it."""

    path: str
    partition_values: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0
    has_deletions: bool = False

    @classmethod
    def from_log(cls, path: str, **values: Any) -> DataFile:
        """Return a file by its path as the log writes it, as a URI."""
        return cls(unquote(path), **values)


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit's actions that may change rows; `changes` are the files of its change data feed."""

    version: int
    operation: str
    sha256: str
    added: tuple[DataFile, ...] = ()
    removed: tuple[DataFile, ...] = ()
    changes: tuple[DataFile, ...] = ()
    metadata: Mapping[str, Any] | None = None
    reader_features: tuple[str, ...] = ()

    @property
    def table_id(self) -> str | None:
        """Delta's id of the table, if the commit changes its metadata."""
        return None if self.metadata is None else str(self.metadata["id"])

    @property
    def mode(self) -> Literal["append", "upsert"]:
        """`append` if a stream added rows: Delta's record of its batches makes their keys new."""
        only_adds = not self.removed and not self.changes
        return "append" if only_adds and self.operation == "STREAMING UPDATE" else "upsert"

    @property
    def new_files(self) -> tuple[DataFile, ...]:
        """The files that hold its new rows; those of a change data feed hold the old ones, too."""
        return self.changes or self.added

    @property
    def size(self) -> int:
        """The bytes of `new_files`."""
        return sum(file.size for file in self.new_files)


def read_commit(files: TableFiles, version: int) -> Commit | None:
    """Return a commit; None if its entry is not in the log.

    Raises:
        SetupError: the entry cannot be read.
    """
    content = files.read(_name_entry(version))
    if content is None:
        return None
    try:
        actions = [json.loads(line) for line in content.splitlines() if line.strip()]
    except ValueError:
        actions = []
    if not actions:
        raise SetupError(
            f"the entry {_name_entry(version)} of the table's log is empty or cut short; "
            "`embedstream doctor CONFIG` says what to do about it"
        )
    found = {name: list(_list_actions(actions, name)) for name in _KINDS}
    info = next(iter(found["commitInfo"]), {})
    return Commit(
        version=version,
        operation=str(info.get("operation", "")),
        sha256=hashlib.sha256(content).hexdigest(),
        added=_read_files(found["add"]),
        removed=_read_files(found["remove"]),
        changes=tuple(map(_read_file, found["cdc"])),
        metadata=next(iter(found["metaData"]), None),
        reader_features=tuple(
            feature for one in found["protocol"] for feature in one.get("readerFeatures") or ()
        ),
    )


def hash_commit(files: TableFiles, version: int) -> str | None:
    """Return the sha256 of a commit's entry; None if it is not in the log any more."""
    content = files.read(_name_entry(version))
    return None if content is None else hashlib.sha256(content).hexdigest()


def find_last_version(files: TableFiles, version: int) -> int:
    """Return the last version of a table whose log has the entry of `version`, without a listing.

    The entries are looked up at growing distances, then between the last two.
    """
    distance = 1
    while files.exists(_name_entry(version + distance)):
        distance *= 2
    low, high = version + distance // 2, version + distance
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if files.exists(_name_entry(middle)) else (low, middle)
    return low


def check_features(features: Iterable[str]) -> None:
    """Check that this reader knows all features of a table.

    Raises:
        SetupError: it does not.
    """
    if unknown := sorted(set(features) - _KNOWN_FEATURES):
        raise SetupError(
            f"the table has features that cannot be followed: {', '.join(unknown)}; write it "
            "without them, or do without an index and publish.topic"
        )


def check_schema(schema: str) -> None:
    """Check that the columns that every outcome has are there, by a schema of the log.

    Raises:
        SetupError: they are not.
    """
    kinds = {one["name"]: one["type"] for one in json.loads(schema)["fields"]}
    for name, kind in _COLUMNS.items():
        found = kinds.get(name)
        if isinstance(found, dict):
            found = {key: value for key, value in found.items() if key != "containsNull"}
        if found != kind:
            raise SetupError(
                f"the table's column '{name}' is {found or 'missing'}, not {kind}: it is not a "
                "table of embedstream, or was altered"
            )


def is_column_mapped(configuration: Mapping[str, str]) -> bool:
    """Return whether the columns have other names in the files than in the schema."""
    return configuration.get("delta.columnMapping.mode", "none") != "none"


_KINDS = ("commitInfo", "add", "remove", "cdc", "metaData", "protocol")


def _name_entry(version: int) -> str:
    return f"_delta_log/{version:020}.json"


def _list_actions(actions: Iterable[Mapping[str, Any]], kind: str) -> Iterable[Mapping[str, Any]]:
    return (action[kind] for action in actions if action.get(kind) is not None)


def _read_files(actions: Iterable[Mapping[str, Any]]) -> tuple[DataFile, ...]:
    return tuple(_read_file(one) for one in actions if one.get("dataChange", True))


def _read_file(action: Mapping[str, Any]) -> DataFile:
    return DataFile.from_log(
        action["path"],
        partition_values=action.get("partitionValues") or {},
        size=action.get("size") or 0,
        has_deletions=action.get("deletionVector") is not None,
    )
