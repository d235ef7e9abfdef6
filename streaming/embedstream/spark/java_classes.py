"""Java classes of embedstream, compiled in the driver's JVM by the compiler that Spark brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

__all__ = ["compile_class"]


def compile_class(spark: SparkSession, source: Path) -> Any:
    """Compile the class that a file is named after, and return its only constructor.

    Raises:
        Py4JJavaError: it does not compile, as where a class that it names is missing.
    """
    jvm: Any = spark.sparkContext._jvm
    compiler = jvm.org.codehaus.janino.SimpleCompiler()
    compiler.setTargetVersion(8)
    compiler.setParentClassLoader(jvm.org.apache.spark.util.Utils.getContextOrSparkClassLoader())
    compiler.cook(source.read_text(encoding="utf-8"))
    [constructor] = compiler.getClassLoader().loadClass(source.stem).getConstructors()
    return constructor
