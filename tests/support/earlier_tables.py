"""Tables of the shape that `embedstream upgrade` alters."""

from __future__ import annotations

from pyspark.sql import SparkSession
from pyspark.sql.types import IntegerType, StructType

from embedstream.table.address import quote_table
from embedstream.table.delta import PROPERTIES, quote_literal
from embedstream.table.rows import OUTCOME_SCHEMA

__all__ = ["EARLIER_SCHEMA", "create_earlier_table"]

EARLIER_SCHEMA = StructType()
for _field in OUTCOME_SCHEMA:
    if _field.name == "media":
        EARLIER_SCHEMA = EARLIER_SCHEMA.add("width", IntegerType()).add("height", IntegerType())
    else:
        EARLIER_SCHEMA = EARLIER_SCHEMA.add(_field)


def create_earlier_table(
    spark: SparkSession, path: str, extra: str = "", layout: str = "", *, mapping: str = "none"
) -> None:
    """Create a table with `width` and `height`.

    `extra` are further columns, `layout` a clause, `mapping` Delta's mode of column mapping.
    """
    columns = ", ".join(f"`{one.name}` {one.dataType.simpleString()}" for one in EARLIER_SCHEMA)
    properties = {
        **PROPERTIES,
        # It came later, and Delta overwrites no table that has both it and column mapping.
        "delta.enableChangeDataFeed": "false",
        "embedstream.model_id": "model",
        "team": "search",
        "delta.feature.allowColumnDefaults": "supported",
        "delta.columnMapping.mode": mapping,
    }
    settings = ", ".join(f"'{name}' = {quote_literal(one)}" for name, one in properties.items())
    spark.sql(
        f"CREATE TABLE {quote_table(path)} ({columns}{extra}) USING delta {layout} "
        f"TBLPROPERTIES ({settings})"
    )
