"""The section of the table; its layout and properties are checked before Spark starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from embedstream.config.field_types import Location, Section, TableName
from embedstream.config.secrets import Properties

__all__ = ["STATISTICS_COLUMNS", "TableConfig", "check_properties"]

STATISTICS_COLUMNS = (
    *("topic", "partition", "offset", "timestamp", "image_id", "uri", "model_id"),
    *("content_sha256", "processed_at", "error.code"),
)
"""The columns of the outcome table whose smallest and largest value Delta keeps for each file.

Statistics of long arrays and texts take time, and no query can skip files by them. By those of
`error.code`, files without tombstones are skipped.
"""

_STATISTICS = "delta.dataSkippingStatsColumns"
# A limit of Delta.
_MOST_CLUSTER_COLUMNS = 4

_REFUSED_PROPERTIES: Mapping[str, str] = {
    "delta.setTransactionRetentionDuration": (
        "the table would forget which micro-batches it has, and a restart after that time could "
        "add a micro-batch twice"
    ),
}
"""Properties that break what the stream promises, and how."""


class TableConfig(Section):
    """The Delta table of outcomes."""

    path: Location = ""
    """A folder, or a location such as `s3a://bucket/table`."""
    name: TableName | None = None
    """The table's name in a catalog of Spark, `catalog.schema.table` or `schema.table`, instead of
    `path`: the catalog says where the table is, and where a new one goes. With both, the table at
    `path` is registered under the name. See [Catalogs](catalogs.md)."""
    properties: Properties = Field(default_factory=dict)
    """Table properties, set when the table is created."""
    partition_by: Literal["date"] | None = None
    """`date` adds a column `date`, the day of the message's timestamp in UTC, and partitions the
    table by it. Set when the table is created, and checked at each start."""
    cluster_by: tuple[str, ...] = ()
    """Up to four columns by which Delta clusters the table (liquid clustering): `[image_id]`. Set
    when the table is created, and checked at each start; without it a table keeps its own
    clustering."""
    compact_every: int = Field(50, ge=0)
    """Small files are compacted each time this many micro-batches have run, while the stream
    continues; 0 leaves compaction to you, or to the catalog that maintains the table."""

    @field_validator("path", mode="wrap")
    @classmethod
    def _take_null(cls, value: object, validate: ValidatorFunctionWrapHandler) -> str:
        # An override has no other way to leave out the path of the file.
        return "" if value is None else str(validate(value))

    @model_validator(mode="after")
    def _check(self) -> TableConfig:
        if not self.path and self.name is None:
            raise ValueError("give path, a folder, or name, the table's name in a catalog of Spark")
        check_properties(self.properties)
        _check_cluster_columns(self.cluster_by, self.properties)
        if self.partition_by is not None and self.cluster_by:
            raise ValueError("give partition_by or cluster_by, not both: Delta allows only one")
        return self


def _check_cluster_columns(columns: Sequence[str], properties: Mapping[str, str]) -> None:
    """Check `table.cluster_by` against the table's columns and its other properties.

    Raises:
        ValueError: Delta could not cluster the table by these columns.
    """
    given = _find_property(properties, _STATISTICS)
    kept = STATISTICS_COLUMNS if given is None else [one.strip(" `") for one in given.split(",")]
    possible = [name for name in STATISTICS_COLUMNS if "." not in name]
    for name in columns:
        if name not in possible:
            raise ValueError(
                f"cluster_by names '{name}', which is not a column with statistics; choose from "
                f"{', '.join(possible)}"
            )
        if name not in kept:
            raise ValueError(
                f"cluster_by names '{name}', of which table.properties keeps no statistics: add "
                f"it to {_STATISTICS}"
            )
    if len(columns) > _MOST_CLUSTER_COLUMNS or len(set(columns)) < len(columns):
        raise ValueError(
            f"cluster_by has {len(columns)} columns ({', '.join(columns)}): name up to "
            f"{_MOST_CLUSTER_COLUMNS} different ones"
        )


def check_properties(properties: Mapping[str, str]) -> None:
    """Check the properties of a table, those of the configuration or of a table that exists.

    Raises:
        ValueError: one of them breaks what the stream promises.
    """
    for name, effect in _REFUSED_PROPERTIES.items():
        if (value := _find_property(properties, name)) is not None:
            raise ValueError(f"the table property {name} is '{value}': {effect}; remove it")


def _find_property(properties: Mapping[str, str], name: str) -> str | None:
    """Return the value of a property; Delta ignores the case of its own."""
    return next((properties[one] for one in properties if one.lower() == name.lower()), None)
