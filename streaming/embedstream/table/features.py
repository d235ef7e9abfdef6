"""What an existing table demands of its writers: refuse at the start what would fail later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pyspark.sql import SparkSession

from embedstream.config.sections import TableConfig
from embedstream.config.sections.table import check_properties
from embedstream.spark.errors import list_causes
from embedstream.table.address import TableAddress, quote_table
from embedstream.table.delta import read_properties
from embedstream.table.delta_log import read_snapshot
from embedstream.table.layout import DATE_COLUMN
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream_core.errors import SetupError

__all__ = ["Door", "check_fillable", "explain_violation", "is_clustered_automatically"]

Door = Literal["messages", "files"]
"""What fills a table: messages of a stream or a replay, or the files of `embedstream batch`."""

_ALWAYS_FILLED: Mapping[Door, frozenset[str]] = {
    "messages": frozenset(
        ("topic", "partition", "offset", "timestamp", "image_id", "processed_at", "attributes")
    ),
    "files": frozenset(("image_id", "processed_at", "attributes")),
}
"""The columns that are null in no row; the others are null in some, as `embedding` of failures."""

# Delta's exceptions for a row that a constraint of the table forbids.
_VIOLATIONS = {"InvariantViolationException", "DeltaInvariantViolationException"}


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What a table's log says of it; `fields` are its columns, as the log writes them."""

    fields: Mapping[str, Mapping[str, Any]]
    partitions: tuple[str, ...]
    clustering: tuple[str, ...]
    properties: Mapping[str, str]

    @classmethod
    def read(cls, spark: SparkSession, path: str) -> Self:
        fields = json.loads(read_snapshot(spark, path).metadata().schemaString())["fields"]
        # By the path, since a catalog may not have the table's name before the start.
        (detail,) = spark.sql(f"DESCRIBE DETAIL {quote_table(path)}").collect()
        return cls(
            {one["name"]: one for one in fields},
            tuple(detail["partitionColumns"]),
            tuple(detail["clusteringColumns"] or ()),
            detail["properties"],
        )

    @property
    def layout(self) -> str:
        """How the table is partitioned or clustered, in words."""
        if self.partitions:
            return f"partitioned by ({', '.join(map(self._describe, self.partitions))})"
        if self.clustering:
            return f"clustered by ({', '.join(self.clustering)})"
        return "neither partitioned nor clustered"

    def _describe(self, name: str) -> str:
        computed = ", which Delta computes" if self.is_computed(name) else ""
        return f"{name} {str(self.fields[name]['type']).upper()}{computed}"

    def has_date_partitions(self) -> bool:
        """Return whether the table has the partitions of `table.partition_by: date`."""
        return (
            self.partitions == (DATE_COLUMN,)
            and self.fields[DATE_COLUMN]["type"] == "date"
            and not self.is_computed(DATE_COLUMN)
        )

    def is_computed(self, name: str) -> bool:
        """Return whether Delta fills a column that a writer does not give."""
        keys = self.fields[name]["metadata"]
        return "delta.generationExpression" in keys or "CURRENT_DEFAULT" in keys


def check_fillable(spark: SparkSession, table: TableConfig, *, door: Door) -> None:
    """Check that an existing table has the configured layout, and takes every row of this door.

    Raises:
        SetupError: it has not, or does not.
    """
    found = _Metadata.read(spark, table.path)
    problems = [*_find_layout_problems(table, found), *_find_feature_problems(found, door)]
    try:
        check_properties(found.properties)
    except ValueError as error:
        problems.append(f"{error} with ALTER TABLE … UNSET TBLPROPERTIES")
    if problems:
        raise SetupError(
            f"the table '{TableAddress.of(table)}' cannot be filled: {'; '.join(problems)}"
        )


def _find_layout_problems(table: TableConfig, found: _Metadata) -> Iterator[str]:
    """Yield how the table's layout differs from the configured one; none may be configured."""
    if table.partition_by is not None and not found.has_date_partitions():
        yield (
            f"table.partition_by is {table.partition_by}, and the table is {found.layout}; Delta "
            "sets partitions when a table is created, so leave partition_by out, or choose another "
            "table.path and checkpoint"
        )
    if table.partition_by is None:
        for name in found.partitions:
            if name not in OUTCOME_SCHEMA.names and not found.is_computed(name):
                is_ours = found.has_date_partitions()
                remedy = "set table.partition_by: date" if is_ours else "choose another table.path"
                yield f"it is {found.layout}, and nothing fills '{name}'; {remedy}"
    if table.cluster_by and set(found.clustering) != set(table.cluster_by):
        names = ", ".join(table.cluster_by)
        alter = f"run ALTER TABLE {TableAddress.of(table).sql} CLUSTER BY ({names})"
        remedy = "choose another table.path and checkpoint" if found.partitions else alter
        yield (
            f"table.cluster_by is [{names}], and the table is {found.layout}; {remedy}, or change "
            "table.cluster_by"
        )


def _find_feature_problems(found: _Metadata, door: Door) -> Iterator[str]:
    """Yield which columns cannot hold what some rows have in them."""
    for name in OUTCOME_SCHEMA.names:
        if not found.fields[name]["nullable"] and name not in _ALWAYS_FILLED[door]:
            yield (
                f"column '{name}' is NOT NULL, and some outcomes have no {name}; run ALTER TABLE … "
                f"ALTER COLUMN {name} DROP NOT NULL"
            )
    for part in found.fields["media"]["type"]["fields"]:
        if not part["nullable"]:
            yield (
                f"the field '{part['name']}' of media is NOT NULL, and some contents have none; "
                "choose another table.path"
            )


def is_clustered_automatically(spark: SparkSession, table: TableAddress) -> bool:
    """Return whether the catalog chooses the table's clustering, and so maintains its files.

    Databricks sets the property for CLUSTER BY AUTO, which requires predictive optimization.
    """
    return read_properties(spark, table).get("clusterByAuto") == "true"


def explain_violation(error: Exception) -> str | None:
    """Return a sentence for an error of a row that a constraint of the table forbids, else None."""
    for cause in list_causes(error):
        if cause.getClass().getSimpleName() in _VIOLATIONS:
            reason = " ".join(str(cause.getMessage()).split())
            return (
                f"the table refuses a row of the outcomes: {reason}; drop the constraint with "
                "ALTER TABLE … DROP CONSTRAINT, or NOT NULL with ALTER TABLE … ALTER COLUMN … DROP "
                "NOT NULL, and start again: no row is lost or duplicated"
            )
    return None
