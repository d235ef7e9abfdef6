"""A rehearsal of a stream, without a broker and a model, whose classes the JVM archives.

When it ends, the JVM archives the classes that it has loaded. So the rehearsal does in Spark and
Delta what `embedstream run` does there. The classes of the Kafka client and of Spark's source are
loaded by their names, because running them needs a broker.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from embedstream.config.sections import PipelineConfig, SparkConfig, TableConfig
from embedstream.spark.class_archive import find_class_archive, write_class_archive
from embedstream.spark.jars import fetch_jars
from embedstream.spark.java import find_java
from embedstream.spark.session import open_session, start_workers
from embedstream.table.address import TableAddress
from embedstream.table.delta import append, check_table, create_table, read_models
from embedstream.table.delta_log import read_writers
from embedstream.table.features import check_fillable
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream_core.errors import SetupError

__all__ = ["build_class_archive"]

_LOADED_BY_NAME = ("kafka-clients", "spark-sql-kafka", "spark-token-provider-kafka")
# A stream uses no classes of Kafka's server and tools, nor its copies of other libraries.
_PACKAGES = (
    "org/apache/kafka/clients/",
    "org/apache/kafka/common/",
    "org/apache/spark/kafka010/",
    "org/apache/spark/sql/kafka010/",
)


def build_class_archive(folder: Path) -> Path:
    """Run a small stream into a Delta table, and archive the classes that it has loaded.

    It takes about half a minute and 230 MB.

    Raises:
        SetupError: the JVM has written no archive.
    """
    archive = find_class_archive(folder, find_java())
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".archive-") as scratch:
        written = Path(scratch) / "classes.jsa"
        options = f"-XX:TieredStopAtLevel=1 {write_class_archive(written)}"
        config = SparkConfig(
            master="local[2,4]",
            log_file=f"{scratch}/spark.log",
            options={"spark.driver.defaultJavaOptions": options},
        )
        with open_session(config, PipelineConfig()) as spark:
            _load_by_name(spark, fetch_jars(["spark"], folder))
            _run_stream(spark, Path(scratch))
        if not written.exists():
            raise SetupError(
                f"the JVM wrote no class archive in {folder}; see whether the disk is full, and "
                "whether this Java is OpenJDK or built from it"
            )
        written.replace(archive)
    return archive


def _run_stream(spark: SparkSession, folder: Path) -> None:
    """Check, create and fill a table, as a first start and a later one do."""
    config = TableConfig(path=str(folder / "table"))
    table = TableAddress.of(config)
    check_table(spark, table)
    start_workers(spark)
    read_writers(spark, table.path)
    create_table(spark, config, model_ids=["rehearsal"])
    rows = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", 2).load()
    counted = rows.observe("messages", f.count(f.lit(1))).where("value >= 0")
    outcomes = counted.select(
        *(f.lit(None).cast(one.dataType).alias(one.name) for one in OUTCOME_SCHEMA)
    ).mapInArrow(lambda batches: batches, OUTCOME_SCHEMA)
    read_writers(spark, table.path)
    read_models(spark, table)
    append(
        outcomes, table, checkpoint=str(folder / "checkpoint"), interval_s=None
    ).awaitTermination()
    check_table(spark, table)
    check_fillable(spark, config, door="messages")


def _load_by_name(spark: SparkSession, jars: list[Path]) -> None:
    jvm: Any = spark.sparkContext._jvm
    loader = jvm.java.lang.ClassLoader.getSystemClassLoader()
    load = jvm.java.lang.Class.forName
    for jar in jars:
        if not jar.name.startswith(_LOADED_BY_NAME):
            continue
        with ZipFile(jar) as opened:
            names = [
                one
                for one in opened.namelist()
                if one.startswith(_PACKAGES) and one.endswith(".class")
            ]
        for name in names:
            try:
                load(name.removesuffix(".class").replace("/", "."), False, loader)
            except Py4JError:
                # It extends a class of an optional dependency.
                continue
