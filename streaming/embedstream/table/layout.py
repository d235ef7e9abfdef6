"""The layout of the table, as the configuration sets it: partitions by day, or clustering."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql.types import DateType, StructField, StructType

from embedstream.config.sections import TableConfig
from embedstream.table.rows import OUTCOME_SCHEMA

__all__ = ["DATE_COLUMN", "build_table_schema", "fill_layout", "write_layout"]

DATE_COLUMN = "date"
"""The column that `table.partition_by: date` adds: the day of the message's timestamp, in UTC.

It is a plain column. For a generated one, Delta would rebuild the DataFrame of each streaming
append, and writers other than Spark could not fill it.
"""


def build_table_schema(table: TableConfig) -> StructType:
    """Return the columns of a new table: those of an outcome, and the one of its partitions."""
    if table.partition_by is None:
        return OUTCOME_SCHEMA
    # `add` would append to the list of a schema that it was made from.
    return StructType([*OUTCOME_SCHEMA.fields, StructField(DATE_COLUMN, DateType())])


def write_layout(table: TableConfig) -> str:
    """Return the clause of CREATE TABLE that sets the layout; empty for none."""
    if table.partition_by is not None:
        return f"PARTITIONED BY (`{DATE_COLUMN}`)"
    names = ", ".join(f"`{name}`" for name in table.cluster_by)
    return f"CLUSTER BY ({names})" if names else ""


def fill_layout(outcomes: DataFrame, table: TableConfig) -> DataFrame:
    """Return outcomes with the columns of `build_table_schema`.

    The date is null if there is no timestamp, or one outside the years 1970 to 9999: a producer may
    give a message any time, and other readers fail at a partition of the year 10000.
    """
    if table.partition_by is None:
        return outcomes
    is_known = f.year("timestamp").between(1970, 9999)
    return outcomes.withColumn(DATE_COLUMN, f.when(is_known, f.to_date("timestamp")))
