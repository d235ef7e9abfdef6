"""The SparkSession: jars, Delta, Arrow limits, redaction. No other module configures Spark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from embedstream.config.locations import get_scheme
from embedstream.config.options import DELTA_CATALOG, DELTA_EXTENSION
from embedstream.config.secrets import NAMES_OF_SECRET_SETTINGS, reveal
from embedstream.config.sections import PipelineConfig, SparkConfig
from embedstream.spark.class_archive import add_class_archive
from embedstream.spark.jars import fetch_jars, find_jars_folder
from embedstream.spark.java import find_java
from embedstream.spark.sizing import count_parallel_tasks
from embedstream_core.errors import EmbedstreamError, SetupError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ENCODERS_VARIABLE",
    "JvmEnded",
    "Launch",
    "build_settings",
    "choose_jar_sets",
    "open_session",
    "plan_launch",
    "warm_workers",
]

# Four attempts per task: with plain local[*], the first failure of a task fails the whole job.
DEFAULT_MASTER = "local[*,4]"

ENCODERS_VARIABLE = "EMBEDSTREAM_ENCODERS"
"""The environment variable that names the encoders to `embedstream.worker.daemon`, with spaces."""

_LOOPBACK = "127.0.0.1"

# On so few cores the JVM's second compiler takes time from the tasks. Only a long session regains
# it; see docs/decisions/0012.
_FEW_CORES = 4
_COMPILE_ONCE = "-XX:TieredStopAtLevel=1"
_JAVA_OPTIONS = "spark.driver.defaultJavaOptions"

# Spark's launcher puts what this variable names behind its own jars and the user's class path.
_CLASS_PATH = "SPARK_DIST_CLASSPATH"

# A JVM that writes a class archive takes a minute for it on a busy machine.
_JVM_END_TIMEOUT_S = 300
_JVM_GONE_S = 0.5

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


class JvmEnded(EmbedstreamError):
    """Spark's JVM ended by itself or was killed."""

    def __init__(self, exit_code: int) -> None:
        how = f"by signal {-exit_code}" if exit_code < 0 else f"with exit code {exit_code}"
        super().__init__(
            f"Spark's JVM has ended {how}: see its log, or the system's log, for the system kills "
            "processes when memory runs out; start again, and the stream resumes where it stopped"
        )


@contextmanager
def open_session(
    config: SparkConfig,
    pipeline: PipelineConfig,
    locations: Iterable[str] = (),
    *,
    lasting: bool = False,
    encoders: Iterable[str] = (),
) -> Iterator[SparkSession]:
    """Open a session that can read and write the locations, and stop it on leaving.

    A `lasting` session runs until somebody stops it; it starts more slowly and is faster later.
    `encoders` are the names of those that its workers will start.

    Raises:
        SetupError: Java is missing or too old, or a jar is missing and cannot be downloaded.
        JvmEnded: Spark's JVM ended during the session.
    """
    # PySpark must launch the Java that was checked, and workers must run the interpreter that
    # embedstream is installed in.
    java = find_java()
    os.environ["JAVA_HOME"] = str(java.resolve().parent.parent)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        # Under spark-submit the JVM runs already, and only it knows what spark-submit was given.
        SparkContext._ensure_initialized()
    launch = plan_launch(config, pipeline, locations, lasting=lasting, java=java)
    settings = launch.settings
    if names := " ".join(encoders):
        # Spark gives it to the daemon of the workers, on every executor.
        settings[f"spark.executorEnv.{ENCODERS_VARIABLE}"] = names
    with TemporaryDirectory(prefix="embedstream-", ignore_cleanup_errors=True) as scratch:
        if settings["spark.master"].startswith("local["):
            # Every user of the machine can enter Spark's own folder. Clusters set up theirs.
            settings.setdefault("spark.local.dir", scratch)
            # Spark's pages, on which jobs can be killed, would be open to the network.
            os.environ.setdefault("SPARK_LOCAL_IP", _LOOPBACK)
        with _redirect_stderr(config.log_file), _extend_class_path(launch.class_path):
            spark = _start(config, settings)
        try:
            yield spark
        except Exception as error:
            if (jvm := getattr(SparkContext._gateway, "proc", None)) is not None:
                # The sockets of a killed JVM close a moment before it ends.
                with suppress(subprocess.TimeoutExpired):
                    raise JvmEnded(jvm.wait(_JVM_GONE_S)) from error
            raise
        finally:
            _stop(spark)


def warm_workers(spark: SparkSession, load: Callable[[], object] | None = None) -> None:
    """Start the Python workers, whose imports take seconds, and wait until they run.

    Each of them calls `load`.
    """

    def same(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        if load is not None:
            load()
        yield from frames

    slots = count_parallel_tasks(spark)
    warmed = spark.range(0, slots, 1, slots).mapInPandas(same, "id long")
    warmed.write.format("noop").mode("overwrite").save()


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

    In a local session whose JVM `java` is still to be launched, the jars are on its class path, for
    the archive holds classes of nothing else. Elsewhere Spark distributes them.

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
    if not settings["spark.master"].startswith("local[") or SparkContext._gateway is not None:
        return Launch(build_settings(config, pipeline, jars, lasting=lasting), ())
    settings[_JAVA_OPTIONS] = add_class_archive(
        settings.get(_JAVA_OPTIONS, ""), folder=folder, java=java
    )
    return Launch(settings, jars)


def build_settings(
    config: SparkConfig,
    pipeline: PipelineConfig,
    jars: Iterable[Path] = (),
    *,
    lasting: bool = False,
) -> dict[str, str]:
    """Return the settings that Spark starts with, secrets in clear; it distributes the jars.

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
    names = [re.escape(name.removeprefix("spark.hadoop.")) for name in _list_secrets(config)]
    hidden = "|".join([NAMES_OF_SECRET_SETTINGS, "keystore", "sasl", "jaas", *names])
    for name, own in {
        "spark.redaction.regex": hidden,
        "spark.sql.redaction.options.regex": f"{hidden}|url",
    }.items():
        settings[name] = f"(?i:{own})" + (f"|({given[name]})" if name in given else "")
    others = given.get("spark.jars") or submitted.get("spark.jars")
    if all_jars := _join(map(str, jars), others):
        settings["spark.jars"] = all_jars
    master = config.master or submitted.get("spark.master") or DEFAULT_MASTER
    if master.startswith("local["):
        settings.setdefault("spark.driver.host", _LOOPBACK)
        if not lasting and (os.cpu_count() or 1) <= _FEW_CORES:
            settings.setdefault(_JAVA_OPTIONS, _COMPILE_ONCE)
    return {**settings, "spark.master": master}


def choose_jar_sets(config: SparkConfig, locations: Iterable[str]) -> Sequence[str]:
    """Return the jar sets that are configured, else those that the locations need."""
    if config.jar_sets is not None:
        return config.jar_sets
    in_s3 = any(get_scheme(location) in ("s3", "s3a", "s3n") for location in locations)
    return ["spark", "s3"] if in_s3 else ["spark"]


@contextmanager
def _extend_class_path(jars: Sequence[Path]) -> Iterator[None]:
    """Add jars to the end of the class path of a JVM that is launched within the block."""
    before = os.environ.get(_CLASS_PATH)
    if jars:
        parts = [*map(str, jars), *filter(None, [before])]
        os.environ[_CLASS_PATH] = os.pathsep.join(parts)
    try:
        yield
    finally:
        os.environ.pop(_CLASS_PATH, None)
        if before is not None:
            os.environ[_CLASS_PATH] = before


def _start(config: SparkConfig, settings: Mapping[str, str]) -> SparkSession:
    """Launch the JVM without secrets, since every user of the machine can read its command line.

    `spark.driver.*` settings are exempt: the driver's JVM is launched with them.
    """
    secrets = [name for name in _list_secrets(config) if not name.startswith("spark.driver.")]
    launch = [(name, value) for name, value in settings.items() if name not in secrets]
    SparkContext._ensure_initialized(conf=SparkConf().setAll(launch))
    builder = SparkSession.builder.appName(config.app_name)
    return builder.config(map=dict(settings)).getOrCreate()


def _stop(spark: SparkSession) -> None:
    """Stop Spark and wait until its JVM has ended.

    A JVM that PySpark did not launch, as under spark-submit, is left running.
    """
    gateway: Any = SparkContext._gateway
    jvm = getattr(gateway, "proc", None)
    if jvm is None or jvm.poll() is None:
        spark.stop()
    if jvm is None or jvm.stdin is None:
        return
    gateway.shutdown()
    jvm.stdin.close()
    jvm.wait(_JVM_END_TIMEOUT_S)
    # PySpark launches a new JVM when it finds none here.
    SparkContext._gateway = SparkContext._jvm = None


def _list_secrets(config: SparkConfig) -> list[str]:
    return [name for name, value in config.options.items() if isinstance(value, SecretStr)]


def _join(own: Iterable[str], others: str | None) -> str:
    """Join the parts of two lists, each part once, with commas as Spark does."""
    further = (part.strip() for part in (others or "").split(","))
    return ",".join(dict.fromkeys([*own, *filter(None, further)]))


@contextmanager
def _redirect_stderr(log_file: str | None) -> Iterator[None]:
    """Point standard error, which a JVM inherits at its launch, to a file if one is given."""
    if log_file is None:
        yield
        return
    path = Path(log_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)
