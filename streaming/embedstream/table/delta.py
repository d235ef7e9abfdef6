"""The Delta table of outcomes: create it, check it, append to it, change it, compact it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.types import StructType

from embedstream.config.sections import TableConfig
from embedstream.config.sections.table import STATISTICS_COLUMNS
from embedstream.spark.errors import find_condition, find_reason
from embedstream.spark.folder import Folder
from embedstream.table.address import TableAddress
from embedstream.table.catalog import find_default_folder
from embedstream.table.delta_log import refuse_catalog_managed
from embedstream.table.layout import build_table_schema, write_layout
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream_core.errors import SetupError

__all__ = [
    "Compaction",
    "append",
    "check_models",
    "check_rewritable",
    "check_table",
    "compact",
    "create_table",
    "has_earlier_shape",
    "open_table",
    "quote_literal",
    "read_models",
    "read_properties",
    "set_models",
]

MODEL_PROPERTY = "embedstream.model_id"
"""The models that fill the table: their model_ids, one per line."""

PROPERTIES: Mapping[str, str] = {
    "delta.autoOptimize.optimizeWrite": "true",
    # Writing a checkpoint of the log makes a commit a second longer; Delta's default is 10.
    "delta.checkpointInterval": "50",
    "delta.dataSkippingStatsColumns": ",".join(STATISTICS_COLUMNS),
    # The index reads the rows that a MERGE or DELETE changed, not the files that it rewrote.
    "delta.enableChangeDataFeed": "true",
}

# The sizes of Delta's own auto compaction: they limit how much one compaction rewrites.
_COMPACTION: Mapping[str, int] = {
    "spark.databricks.delta.optimize.minFileSize": 64 * 2**20,
    "spark.databricks.delta.optimize.maxFileSize": 128 * 2**20,
    # Of a clustered table, all files below this sum are sorted again each time; Delta's default is
    # 100 GiB, so the stream would rewrite its whole table every 50 micro-batches.
    "spark.databricks.delta.optimize.clustering.mergeStrategy.minCubeSize.threshold": 256 * 2**20,
}

_CHECKPOINT_WRITER = "spark.sql.streaming.checkpointFileManagerClass"
_WITHOUT_PROCESSES = (
    "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"
)

_NO_TABLE = {"PATH_NOT_FOUND", "DELTA_TABLE_NOT_FOUND", "DELTA_PATH_DOES_NOT_EXIST"}


def create_table(spark: SparkSession, table: TableConfig, *, model_ids: Iterable[str]) -> None:
    """Create the outcome table, unless it exists; one with a name is registered in its catalog.

    This comes before the start of the stream, so that readers and an empty first micro-batch find
    the table, and before its folder is claimed: Delta creates no table in a folder that holds a
    file, such as a claim, or a log without an entry, as a driver leaves that is killed here.

    Raises:
        SetupError: the catalog refuses to create the table.
    """
    address = TableAddress.of(table)
    log = Folder(spark, f"{table.path}/_delta_log")
    log.remove_if_empty()
    merged = {**PROPERTIES, **table.properties, MODEL_PROPERTY: "\n".join(model_ids)}
    columns = ", ".join(
        f"`{name}` {kind}" for name, kind in _types(build_table_schema(table)).items()
    )
    settings = ", ".join(
        f"{quote_literal(name)} = {quote_literal(value)}" for name, value in merged.items()
    )
    properties = f"{write_layout(table)} TBLPROPERTIES ({settings})"
    location = f" LOCATION {quote_literal(table.path)}"
    if address.name is None:
        definition = f" ({columns}) USING delta {properties}"
    elif log.list_sizes():
        # Delta compares a definition with an existing table; only the name is new here.
        definition = f" USING delta{location}"
    else:
        # Without a location the table is the catalog's own: DROP TABLE deletes its files.
        is_managed = find_default_folder(spark, address.name) == table.path
        location = "" if is_managed else location
        definition = f" ({columns}) USING delta{location} {properties}"
    try:
        spark.sql(f"CREATE TABLE IF NOT EXISTS {address.sql}{definition}")
    except (PySparkException, Py4JJavaError) as error:
        if address.name is None:
            raise
        reason = find_reason(error)
        raise SetupError(
            f"the catalog refuses to create the table '{address}' ({reason}); correct "
            "table.properties, get the permission to create tables in its schema, or create it "
            "with CREATE TABLE"
        ) from error


def append(
    outcomes: DataFrame, table: TableAddress, *, checkpoint: str, interval_s: float | None
) -> StreamingQuery:
    """Start a query that appends each micro-batch in one Delta commit, exactly once.

    `interval_s` is the time between the starts of micro-batches; with None the query reads what is
    there and ends. Delta's sink records the ids of the query and of the micro-batch in the commit
    that holds the rows, and skips a micro-batch that it has recorded: one repeated after a crash
    adds nothing.
    """
    _avoid_processes(outcomes.sparkSession, checkpoint)
    writer = (
        outcomes.writeStream.format("delta")
        .outputMode("append")
        .queryName("embedstream")
        .option("checkpointLocation", checkpoint)
        # Delta does not read the codec from the table's properties.
        .option("compression", "zstd")
    )
    if interval_s is None:
        writer = writer.trigger(availableNow=True)
    else:
        writer = writer.trigger(processingTime=f"{int(interval_s * 1000)} milliseconds")
    return writer.start(table.path) if table.name is None else writer.toTable(table.sql)


def _avoid_processes(spark: SparkSession, checkpoint: str) -> None:
    """Let Spark write a checkpoint on a local disk through Hadoop's older interface.

    The newer one, its default, starts `readlink` several times to rename a file. On a local disk
    both check whether the new name is free, and then rename. On other file systems only the newer
    one does both in one step.
    """
    if spark.conf.get(_CHECKPOINT_WRITER, None) is None and Folder(spark, checkpoint).is_on_disk():
        spark.conf.set(_CHECKPOINT_WRITER, _WITHOUT_PROCESSES)


@dataclass(frozen=True, slots=True)
class Compaction:
    """How many files a compaction replaced, and by how many."""

    files_removed: int
    files_added: int


def compact(spark: SparkSession, table: TableAddress) -> Compaction:
    """Merge the table's small files. Other writers may append at the same time."""
    session = spark.newSession()
    for name, value in _COMPACTION.items():
        if not spark.sparkContext.getConf().contains(name):
            session.conf.set(name, value)
    (found,) = session.sql(f"OPTIMIZE {table.sql}").collect()
    return Compaction(found.metrics.numFilesRemoved, found.metrics.numFilesAdded)


def open_table(spark: SparkSession, table: TableAddress) -> DataFrame | None:
    """Return the table at an address; None if there is none at a path.

    Raises:
        SetupError: Spark cannot reach the path, or what is there is not a Delta table, or the
            catalog has the name of a table that is gone.
    """
    Folder(spark, table.path).check_reachable()
    try:
        return table.read(spark)
    except (AnalysisException, Py4JJavaError) as error:
        condition = find_condition(error)
        if table.name is None and condition in _NO_TABLE:
            return None
        refuse_catalog_managed(condition, str(table))
        first_line = str(error).partition("\n")[0]
        key = "path" if table.name is None else "name"
        raise SetupError(
            f"table.{key} '{table}' cannot be read as a Delta table ({first_line}); choose another "
            f"{key}, or repair the table"
        ) from None


def check_table(
    spark: SparkSession, table: TableAddress, *, upgrade: str = "embedstream upgrade CONFIG"
) -> int | None:
    """Check the columns of an existing table and count its rows; return None if there is no table.

    The table may have more columns, if these may be null. `upgrade` is the command that alters a
    table of an earlier version.

    Raises:
        SetupError: Spark cannot reach the path, no Delta table is there, a column is missing or has
            another type, or is an additional one that may not be null.
    """
    if (found := open_table(spark, table)) is None:
        return None
    if has_earlier_shape(found.schema):
        raise SetupError(
            f"the table '{table}' has the columns width and height of an earlier version, where "
            f"media is now; alter it with `{upgrade}`, which keeps its rows"
        )
    own, present = _types(OUTCOME_SCHEMA), _types(found.schema)
    problems = [
        f"column '{name}' is {present.get(name, 'missing')}, not {kind}"
        for name, kind in own.items()
        if present.get(name) != kind
    ] + [
        f"column '{field.name}' may not be null, and the stream does not fill it"
        for field in found.schema
        if field.name not in own and not field.nullable
    ]
    if problems:
        raise SetupError(
            f"the table '{table}' does not fit: {'; '.join(problems)}; choose another table.path, "
            "or alter the table"
        )
    return found.count()


def check_rewritable(spark: SparkSession, table: TableAddress, *, purpose: str) -> None:
    """Check that rows of a table may be changed; `purpose` is what changes them.

    Raises:
        SetupError: the table is append-only.
    """
    if read_properties(spark, table).get("delta.appendOnly") == "true":
        raise SetupError(
            f"the table '{table}' is append-only, and {purpose} rewrites its rows; run ALTER TABLE "
            f"{table.sql} SET TBLPROPERTIES ('delta.appendOnly' = 'false') before it"
        )


def has_earlier_shape(schema: StructType) -> bool:
    """Return whether it is the outcome table with `width` and `height` in place of `media`."""
    earlier = _types(OUTCOME_SCHEMA) | {"width": "int", "height": "int"}
    del earlier["media"]
    return "media" not in schema.names and earlier.items() <= _types(schema).items()


def check_models(
    spark: SparkSession, table: TableAddress, model_ids: Sequence[str], *, remedy: str
) -> None:
    """Check that an existing table is filled by these models, in whatever order.

    Raises:
        SetupError: other models fill it; `remedy` ends the message.
    """
    filled_by = read_models(spark, table)
    if not filled_by or set(filled_by) == set(model_ids):
        return
    if len(filled_by) == len(model_ids) == 1:
        difference = f"'{filled_by[0]}', and encoder gives '{model_ids[0]}'"
    else:
        added = [f"adds '{one}'" for one in model_ids if one not in filled_by]
        removed = [f"leaves out '{one}'" for one in filled_by if one not in model_ids]
        named = ", ".join(f"'{one}'" for one in filled_by)
        difference = f"{named}, and the configuration {', '.join(added + removed)}"
    raise SetupError(f"the table holds embeddings of {difference}; {remedy}")


def read_models(spark: SparkSession, table: TableAddress) -> tuple[str, ...]:
    """Return the ids of the models that fill an existing table; none if it does not name them."""
    return tuple(read_properties(spark, table).get(MODEL_PROPERTY, "").splitlines())


def set_models(spark: SparkSession, table: TableAddress, model_ids: Sequence[str]) -> None:
    """Record the models that fill the table from now on.

    This commit changes the table's metadata: Delta refuses the commit of a micro-batch that is in
    flight at the time.
    """
    recorded = quote_literal("\n".join(model_ids))
    spark.sql(
        f"ALTER TABLE {table.sql} SET TBLPROPERTIES ({quote_literal(MODEL_PROPERTY)} = {recorded})"
    )


def read_properties(spark: SparkSession, table: TableAddress) -> dict[str, str]:
    """Return the properties of an existing table."""
    rows = spark.sql(f"SHOW TBLPROPERTIES {table.sql}").collect()
    return {row["key"]: row["value"] for row in rows}


def quote_literal(text: str) -> str:
    """Return a text as a literal in SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _types(schema: StructType) -> dict[str, str]:
    """Return the type of each column, as SQL writes it."""
    return {field.name: field.dataType.simpleString() for field in schema}
