"""The Delta table of outcomes: its schema, its properties, and the append that fills it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.readwriter import DataStreamWriter
from pyspark.sql.types import StructType

from embedstream.spark.folder import Folder
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream_core.errors import SetupError

__all__ = [
    "append",
    "check_model",
    "check_table",
    "compact",
    "create_table",
    "embeddings",
    "failures",
    "literal",
    "set_model",
    "table_name",
    "table_properties",
    "was_altered",
]

MODEL_PROPERTY = "embedstream.model_id"

PROPERTIES: Mapping[str, str] = {
    "delta.autoOptimize.optimizeWrite": "true",
    # A checkpoint of the log takes a second of the commit that it falls on; Delta writes one for
    # every tenth by default.
    "delta.checkpointInterval": "50",
    # Statistics of long arrays and messages cost time and skip nothing.
    "delta.dataSkippingStatsColumns": "topic,partition,offset,timestamp,image_id,uri,model_id,"
    "content_sha256,processed_at",
}

# As Delta's own auto compaction has them: what is rewritten now and then stays small.
_COMPACTION: Mapping[str, int] = {
    "spark.databricks.delta.optimize.minFileSize": 64 * 2**20,
    "spark.databricks.delta.optimize.maxFileSize": 128 * 2**20,
}

_ABSENT = {"PATH_NOT_FOUND", "DELTA_TABLE_NOT_FOUND", "DELTA_PATH_DOES_NOT_EXIST"}


def create_table(
    spark: SparkSession, path: str, *, model_id: str, properties: Mapping[str, str] | None = None
) -> None:
    """Create the outcome table at a path, where there is none.

    It is created before the stream starts, so that readers and a first empty batch find it.
    """
    merged = {**PROPERTIES, **(properties or {}), MODEL_PROPERTY: model_id}
    columns = ", ".join(
        f"`{field.name}` {field.dataType.simpleString()}" for field in OUTCOME_SCHEMA
    )
    settings = ", ".join(f"{literal(name)} = {literal(value)}" for name, value in merged.items())
    spark.sql(
        f"CREATE TABLE IF NOT EXISTS {table_name(path)} ({columns}) USING delta "
        f"TBLPROPERTIES ({settings})"
    )


def append(outcomes: DataFrame, path: str, *, checkpoint: str) -> DataStreamWriter:
    """The writer that appends each micro-batch in one Delta commit, exactly once.

    Delta's own sink records the query's id and the batch's id in the commit that holds the rows,
    and skips a batch that it has already: a batch repeated after a crash adds nothing.
    """
    return (
        outcomes.writeStream.format("delta")
        .outputMode("append")
        .queryName("embedstream")
        .option("checkpointLocation", checkpoint)
        # Delta does not read the codec from the table's properties.
        .option("compression", "zstd")
        .option("path", path)
    )


def compact(spark: SparkSession, path: str) -> None:
    """Join the table's small files. Appends go on meanwhile."""
    session = spark.newSession()
    given = spark.sparkContext.getConf()
    for name, value in _COMPACTION.items():
        if not given.contains(name):
            session.conf.set(name, value)
    session.sql(f"OPTIMIZE {table_name(path)}")


def embeddings(spark: SparkSession, path: str) -> DataFrame:
    """The good outcomes."""
    return spark.read.format("delta").load(path).where("embedding IS NOT NULL").drop("error")


def failures(spark: SparkSession, path: str) -> DataFrame:
    """The bad outcomes, with `code`, `stage` and `message` as columns."""
    table = spark.read.format("delta").load(path).where("error IS NOT NULL")
    kept = [name for name in table.columns if name not in ("embedding", "error")]
    return table.select("error.*", *kept)


def check_table(spark: SparkSession, path: str) -> int | None:
    """How many rows an existing table has; None where there is no table yet.

    Raises:
        SetupError: Spark cannot reach the path, or what is there is no Delta table, or lacks a
            column, or has one of another type. Columns of yours beside ours are fine where they may
            be null.
    """
    Folder(spark, path).check_reachable()
    try:
        table = spark.read.format("delta").load(path)
        problems = _schema_problems(table.schema)
        rows = table.count()
    except AnalysisException as error:
        if error.getCondition() in _ABSENT:
            return None
        raise SetupError(
            f"table.path '{path}' cannot be read as a Delta table ({_first_line(error)}); choose "
            "another path, or repair the table"
        ) from None
    if problems:
        raise SetupError(
            f"the table '{path}' does not fit: {'; '.join(problems)}; choose another table.path, "
            "or alter the table"
        )
    return rows


def check_model(spark: SparkSession, path: str, model_id: str, *, remedy: str) -> None:
    """
    Raises:
        SetupError: another model fills the existing table; `remedy` ends the message.
    """
    filled_by = table_properties(spark, path).get(MODEL_PROPERTY)
    if filled_by and filled_by != model_id:
        raise SetupError(
            f"the table holds embeddings of '{filled_by}', and encoder gives '{model_id}'; {remedy}"
        )


def was_altered(error: Exception) -> bool:
    """Whether a micro-batch was refused, all of it, since someone altered the table meanwhile."""
    return re.search(r"DELTA_(METADATA|PROTOCOL)_CHANGED", str(error)) is not None


def table_properties(spark: SparkSession, path: str) -> dict[str, str]:
    """The properties of an existing table."""
    rows = spark.sql(f"SHOW TBLPROPERTIES {table_name(path)}").collect()
    return {row["key"]: row["value"] for row in rows}


def set_model(spark: SparkSession, path: str, model_id: str) -> None:
    """Record the model that fills the table from now on."""
    spark.sql(
        f"ALTER TABLE {table_name(path)} SET TBLPROPERTIES "
        f"({literal(MODEL_PROPERTY)} = {literal(model_id)})"
    )


def _schema_problems(schema: StructType) -> list[str]:
    present = {field.name: field for field in schema}
    own = {field.name: field.dataType.simpleString() for field in OUTCOME_SCHEMA}
    kinds = {name: field.dataType.simpleString() for name, field in present.items()}
    return [
        f"column '{name}' is {kinds.get(name, 'missing')}, not {kind}"
        for name, kind in own.items()
        if kinds.get(name) != kind
    ] + [
        f"column '{name}' may not be null, and the stream does not fill it"
        for name, field in present.items()
        if name not in own and not field.nullable
    ]


def table_name(path: str) -> str:
    """The table at a path, as SQL names it."""
    return f"delta.`{path.replace('`', '``')}`"


def literal(text: str) -> str:
    """A text as SQL writes it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
