"""What Delta's unreleased fix gives: the state for a micro-batch from the log's checksum file.

    python benchmarks/delta_checksum.py [--turns 4] [--bursts 20] [--encoder efficientnet_lite0]

Delta's sink rebuilds the state of the log in each micro-batch to see whether the micro-batch is in
the table already; delta-io/delta #6929 reads it from the checksum file. A copy of Delta's released
jar is patched here to do so, with the Java classes in delta_patch; a JDK must be installed. This
jar is for measuring alone: no stream runs with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pyspark

from embedstream.config.sections import StreamConfig
from embedstream.spark.jars import fetch_jars, find_jars_folder
from embedstream.spark.java import find_java
from micro_batch import AS_IT_COMES, CHECKSUM, NO_STATE_AHEAD, measure_variants, parse

__all__ = ["use_patched_delta"]

_SOURCES = Path(__file__).with_name("delta_patch")
_SPARK = Path(pyspark.__file__).with_name("jars")


def main() -> None:
    measure_variants(
        (NO_STATE_AHEAD, CHECKSUM, AS_IT_COMES),
        parse(__doc__),
        result="delta-checksum",
        change=use_patched_delta,
    )


def use_patched_delta(config: StreamConfig, folder: Path) -> StreamConfig:
    """Return the settings of a session with a patched copy of Delta's jar, made in the folder."""
    jars = fetch_jars(["spark"], find_jars_folder())
    released = next(jar for jar in jars if jar.name.startswith("delta-spark_"))
    patched = Path(shutil.copy(released, folder))
    java = find_java().resolve()
    classpath = os.pathsep.join([str(released), f"{_SPARK}/*"])
    source = _SOURCES / "FromChecksum.java"
    compiler = java.with_name("javac")
    subprocess.run([compiler, "-proc:none", "-d", folder, "-cp", classpath, source], check=True)
    patcher = _SOURCES / "PatchSnapshot.java"
    subprocess.run([java, "-cp", classpath, patcher, patched, folder], check=True)
    used = ",".join(str(patched if jar == released else jar) for jar in jars)
    options = {**config.spark.options, "spark.jars": used}
    spark = config.spark.model_copy(update={"jars": "provided", "options": options})
    return config.model_copy(update={"spark": spark})


if __name__ == "__main__":
    main()
