"""An archive of Spark's classes, which the JVM maps into memory instead of loading each class.

Two cores reach the end of a first query after 9.3 s with it, and after 12.7 s without; the JVM uses
7.4 s and 11.0 s of their time. Java calls it a dynamic class data sharing archive (JEP 350). The
JVM checks that the archive belongs to it and to Spark's jars, and ignores another one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pyspark

from embedstream.spark.java import find_java
from embedstream_core.errors import SetupError

__all__ = ["add_class_archive", "build_class_archive", "find_class_archive"]

# The JVM would print a warning for each class that it cannot archive, and for a foreign archive.
_QUIET = "-Xlog:cds=off -Xlog:cds+dynamic=off"
# The JVM refuses to write an archive while it uses one.
_WRITE = "-XX:ArchiveClassesAtExit="


def find_class_archive(folder: Path, java: Path) -> Path:
    """Return where the archive of a Java and of this Spark is, or would be."""
    home = java.resolve().parent.parent
    made_by = f"{home} {_read_release(home)} {pyspark.__file__} {pyspark.__version__}"
    return folder / f"spark-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.jsa"


def add_class_archive(options: str, *, folder: Path, java: Path) -> str:
    """Return the JVM's options with those that use the archive, if there is one."""
    archive = find_class_archive(folder, java)
    if not archive.exists() or _WRITE in options:
        return options
    return f"{options} -XX:SharedArchiveFile={archive} {_QUIET}".strip()


def build_class_archive(folder: Path) -> Path:
    """Run a small stream into a Delta table, and archive the classes that it has loaded.

    It takes about half a minute and 190 MB.

    Raises:
        SetupError: the JVM has written no archive.
    """
    from embedstream.config.sections import PipelineConfig, SparkConfig
    from embedstream.spark.session import open_session

    archive = find_class_archive(folder, find_java())
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".archive-") as scratch:
        written = Path(scratch) / "classes.jsa"
        options = f"-XX:TieredStopAtLevel=1 {_WRITE}{written} {_QUIET}"
        config = SparkConfig(
            master="local[2,4]",
            log_file=f"{scratch}/spark.log",
            options={"spark.driver.defaultJavaOptions": options},
        )
        with open_session(config, PipelineConfig()) as spark:
            rows = spark.readStream.format("rate").load()
            writer = rows.mapInArrow(lambda batches: batches, rows.schema).writeStream
            query = (
                writer.format("delta")
                .option("checkpointLocation", f"{scratch}/checkpoint")
                .trigger(availableNow=True)
                .start(f"{scratch}/table")
            )
            query.awaitTermination()
            spark.read.format("delta").load(f"{scratch}/table").count()
        if not written.exists():
            raise SetupError(
                f"the JVM wrote no class archive in {folder}; see whether the disk is full, and "
                "whether this Java is OpenJDK or built from it"
            )
        written.replace(archive)
    return archive


def _read_release(home: Path) -> str:
    """Return the file that names a Java's exact version, empty if it has none."""
    try:
        return (home / "release").read_text(encoding="utf-8")
    except OSError:
        return ""
