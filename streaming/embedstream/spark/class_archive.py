"""An archive of classes, which the JVM maps into memory instead of loading each of them.

Java calls it a dynamic class data sharing archive (JEP 350). Its classes are those of the JVM's own
class path, on which local sessions have the fetched jars: Spark, Delta, the Kafka client. The JVM
checks that the archive was made by this Java with the same jars at the beginning of its class path,
and ignores another one. `embedstream.stream.rehearsal` makes it; see docs/decisions/0041.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pyspark

from embedstream.spark.jars import read_jar_set

__all__ = ["add_class_archive", "find_class_archive", "write_class_archive"]

_log = logging.getLogger(__name__)

# The JVM would print a warning for each class that it cannot archive, and for a foreign archive.
_QUIET = "-Xlog:cds=off -Xlog:cds+dynamic=off"
# The JVM refuses to write an archive while it uses one.
_WRITE = "-XX:ArchiveClassesAtExit="


def find_class_archive(folder: Path, java: Path) -> Path:
    """Return where the archive of a Java, of this Spark and of its jars is, or would be."""
    home, jars = java.resolve().parent.parent, read_jar_set("spark")
    made_by = f"{home} {_read_release(home)} {pyspark.__file__} {pyspark.__version__} {jars}"
    return folder / f"spark-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.jsa"


def add_class_archive(options: str, *, folder: Path, java: Path) -> str:
    """Return the JVM's options with those that use the archive, if there is one."""
    archive = find_class_archive(folder, java)
    if _WRITE in options:
        return options
    if not archive.exists():
        _log.info("`embedstream jars --class-archive`, run once, shortens each start")
        return options
    return f'{options} -XX:SharedArchiveFile="{archive}" {_QUIET}'.strip()


def write_class_archive(archive: Path) -> str:
    """Return the options of a JVM that archives the classes that it has loaded when it ends."""
    return f'{_WRITE}"{archive}" {_QUIET}'


def _read_release(home: Path) -> str:
    """Return the file that names a Java's exact version, empty if it has none."""
    try:
        return (home / "release").read_text(encoding="utf-8")
    except OSError:
        return ""
