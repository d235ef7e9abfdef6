"""What Spark is launched with: jars, Delta, Arrow limits, redaction. Nothing else configures it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from pyspark import SparkConf, SparkContext
from pyspark.find_spark_home import _find_spark_home

from embedstream.config.locations import get_scheme
from embedstream.config.options import DELTA_CATALOG, DELTA_EXTENSION
from embedstream.config.secrets import NAMES_OF_SECRET_SETTINGS, reveal
from embedstream.config.sections import PipelineConfig, SparkConfig
from embedstream.spark.class_archive import add_class_archive
from embedstream.spark.jars import fetch_jars, find_jars_folder
from embedstream_core.errors import SetupError

__all__ = [
    "CLASS_PATH_VARIABLE",
    "LOOPBACK",
    "Launch",
    "add_jars",
    "build_settings",
    "choose_jar_sets",
    "list_secrets",
    "plan_launch",
]

# Four attempts per task: with plain local[*], the first failure of a task fails the whole job.
DEFAULT_MASTER = "local[*,4]"

LOOPBACK = "127.0.0.1"

CLASS_PATH_VARIABLE = "SPARK_DIST_CLASSPATH"
"""Spark's launcher puts what it names behind its own jars and the user's class path."""

# On so few cores the JVM's second compiler takes time from the tasks. Only a long session regains
# it; see docs/decisions/0012.
_FEW_CORES = 4
_COMPILE_ONCE = "-XX:TieredStopAtLevel=1"

_JAVA_OPTIONS = "spark.driver.defaultJavaOptions"

_SETTINGS: Mapping[str, str] = {
    "spark.sql.catalog.spark_catalog": DELTA_CATALOG,
    "spark.sql.session.timeZone": "UTC",
    "spark.python.worker.reuse": "true",
    "spark.python.daemon.module": "embedstream.worker.daemon",
    "spark.ui.showConsoleProgress": "false",
    # By default each commit to the table runs 50 to 200 tasks over a log of a few kilobytes. On two
    # cores the first commit then took 40 s; with these it takes 16 s. See docs/decisions/0006.
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "1",
}
# The values that a user gives for these are added to ours.
_EXTENDED = (
    "spark.jars",
    "spark.redaction.regex",
    "spark.sql.extensions",
    "spark.sql.redaction.options.regex",
)


@dataclass(frozen=True, slots=True)
class Launch:
    """What Spark starts with; `class_path` are jars for the class path of a JVM of its own."""

    settings: dict[str, str]
    class_path: Sequence[Path]


def plan_launch(
    config: SparkConfig,
    pipeline: PipelineConfig,
    locations: Iterable[str] = (),
    *,
    lasting: bool = False,
    java: Path,
) -> Launch:
    """Return what Spark starts with, and fetch its jars.

    A local session launches its JVM with `java` and the jars on the class path, because the archive
    holds classes of nothing else. Where the JVM already runs, where Spark's environment script sets
    the class path itself, or on a cluster, Spark distributes the jars.

    Raises:
        SetupError: a jar cannot be fetched, or `build_settings` refuses an option.
    """
    settings = build_settings(config, pipeline, lasting=lasting)
    if config.jars == "provided":
        return Launch(settings, ())
    folder = find_jars_folder()
    # The archive was made with the jars of this set as the first ones.
    names = sorted(choose_jar_sets(config, locations), key=lambda name: name != "spark")
    jars = fetch_jars(names, folder)
    is_local = settings["spark.master"].startswith("local[")
    if not is_local or SparkContext._gateway is not None or _sets_class_path():
        return Launch(add_jars(settings, jars), ())
    settings[_JAVA_OPTIONS] = add_class_archive(
        settings.get(_JAVA_OPTIONS, ""), folder=folder, java=java
    )
    return Launch(settings, jars)


def build_settings(
    config: SparkConfig,
    pipeline: PipelineConfig,
    *,
    lasting: bool = False,
) -> dict[str, str]:
    """Return the settings that Spark starts with, secrets in clear, without jars of our own.

    Raises:
        SetupError: an option differs from one of our settings in case alone: Spark would not read
            it.
    """
    given, submitted = reveal(config.options), SparkConf()
    known = {name.lower(): name for name in (*_SETTINGS, *_EXTENDED)}
    for name in given:
        if (right := known.get(name.lower(), name)) != name:
            raise SetupError(
                f"'{name}' of spark.options is not a setting of Spark, whose names are "
                f"case-sensitive; write {right}"
            )
    settings = {
        **_SETTINGS,
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(pipeline.arrow_batch_rows),
        "spark.sql.execution.arrow.maxBytesPerBatch": str(pipeline.arrow_batch_bytes),
        **given,
        "spark.sql.extensions": _join([DELTA_EXTENSION], given.get("spark.sql.extensions")),
    }
    # Spark's pages and logs hide what is named like a secret, and what was given as one.
    names = [re.escape(name.removeprefix("spark.hadoop.")) for name in list_secrets(config)]
    hidden = "|".join([NAMES_OF_SECRET_SETTINGS, "keystore", "sasl", "jaas", *names])
    for name, own in {
        "spark.redaction.regex": hidden,
        "spark.sql.redaction.options.regex": f"{hidden}|url",
    }.items():
        settings[name] = f"(?i:{own})" + (f"|({given[name]})" if name in given else "")
    if jars := _join([], given.get("spark.jars") or submitted.get("spark.jars")):
        settings["spark.jars"] = jars
    master = config.master or submitted.get("spark.master") or DEFAULT_MASTER
    if master.startswith("local["):
        settings.setdefault("spark.driver.host", LOOPBACK)
        if not lasting and (os.cpu_count() or 1) <= _FEW_CORES:
            settings.setdefault(_JAVA_OPTIONS, _COMPILE_ONCE)
    return {**settings, "spark.master": master}


def add_jars(settings: Mapping[str, str], jars: Iterable[Path]) -> dict[str, str]:
    """Return the settings with jars that Spark distributes, before those of the user."""
    return {**settings, "spark.jars": _join(map(str, jars), settings.get("spark.jars"))}


def choose_jar_sets(config: SparkConfig, locations: Iterable[str]) -> Sequence[str]:
    """Return the jar sets that are configured, else those that the locations need."""
    if config.jar_sets is not None:
        return config.jar_sets
    in_s3 = any(get_scheme(location) in ("s3", "s3a", "s3n") for location in locations)
    return ["spark", "s3"] if in_s3 else ["spark"]


def list_secrets(config: SparkConfig) -> list[str]:
    """Return the names of the options whose values were given as secrets."""
    return [name for name, value in config.options.items() if isinstance(value, SecretStr)]


def _sets_class_path() -> bool:
    """Return whether the script that Spark's launcher reads replaces our class path.

    A Spark without Hadoop finds it that way, by `export SPARK_DIST_CLASSPATH=$(hadoop classpath)`.
    """
    folder = os.environ.get("SPARK_CONF_DIR") or Path(_find_spark_home(), "conf")
    try:
        script = Path(folder, "spark-env.sh").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # Spark's template names it in comments.
    return re.search(rf"^[^#\n]*\b{CLASS_PATH_VARIABLE}=", script, re.MULTILINE) is not None


def _join(own: Iterable[str], others: str | None) -> str:
    """Join the parts of two lists, each part once, with commas as Spark does."""
    further = (part.strip() for part in (others or "").split(","))
    return ",".join(dict.fromkeys([*own, *filter(None, further)]))
