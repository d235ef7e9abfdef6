"""The SparkSession: jars, Delta, Arrow limits, redaction. Nothing else configures Spark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from embedstream.config.locations import scheme_of
from embedstream.config.options import DELTA_CATALOG, DELTA_EXTENSION
from embedstream.config.secrets import NAMES_OF_SECRET_SETTINGS
from embedstream.config.sections import PipelineConfig, SparkConfig, revealed
from embedstream.spark.jars import default_jars_folder, fetch_jars
from embedstream.spark.java import find_java
from embedstream.spark.sizing import tasks_at_once
from embedstream_core.errors import EmbedstreamError, SetupError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JvmEnded", "open_session", "warm_workers"]

# Four attempts for each task: plain local[*] fails the whole job at a task's first failure.
DEFAULT_MASTER = "local[*,4]"

_LOOPBACK = "127.0.0.1"

# On so few, what the JVM compiles takes the time of what it runs, which only a session that lasts
# gets back; see docs/decisions/0012.
_FEW_CORES = 4
_COMPILE_ONCE = "-XX:TieredStopAtLevel=1"

_JVM_END_TIMEOUT_S = 30
_JVM_GONE_S = 0.5

_SETTINGS: Mapping[str, str] = {
    "spark.sql.catalog.spark_catalog": DELTA_CATALOG,
    "spark.sql.session.timeZone": "UTC",
    "spark.python.worker.reuse": "true",
    "spark.python.daemon.module": "embedstream.worker.daemon",
    "spark.ui.showConsoleProgress": "false",
    # By default each commit to the table runs 50 to 200 tasks over a log of a few kilobytes: on two
    # cores the first then took 40 s, and takes 16 s so; see docs/decisions/0006.
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "1",
}
# What is given is added to our own.
_EXTENDED = (
    "spark.jars",
    "spark.redaction.regex",
    "spark.sql.extensions",
    "spark.sql.redaction.options.regex",
)


class JvmEnded(EmbedstreamError):
    """Spark's JVM ended by itself, or was killed."""

    def __init__(self, exit_code: int) -> None:
        how = f"by signal {-exit_code}" if exit_code < 0 else f"with exit code {exit_code}"
        super().__init__(
            f"Spark's JVM has ended {how}: its log tells why, or the system's, which kills when "
            "memory runs out; start again, and the stream goes on where it was"
        )


@contextmanager
def open_session(
    config: SparkConfig,
    pipeline: PipelineConfig,
    locations: Iterable[str] = (),
    *,
    lasting: bool = False,
) -> Iterator[SparkSession]:
    """A session for the stream, stopped on leaving, that can read and write the locations.

    One that is `lasting` runs until somebody stops it, and starts more slowly for being fast later.

    Raises:
        SetupError: Java is missing or too old, or a jar cannot be had.
        JvmEnded: Spark's JVM ended before it was to.
    """
    _use_java()
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        # What spark-submit was given is known to its JVM, which runs already.
        SparkContext._ensure_initialized()
    settings = _settings(config, pipeline, locations, lasting=lasting)
    with TemporaryDirectory(prefix="embedstream-", ignore_cleanup_errors=True) as scratch:
        if settings["spark.master"].startswith("local["):
            # Spark's own can be entered by all on the machine. Clusters have theirs set up.
            settings.setdefault("spark.local.dir", scratch)
            # Its pages, on which jobs can be killed, would be open to the network.
            os.environ.setdefault("SPARK_LOCAL_IP", _LOOPBACK)
        with _standard_error_to(config.log_file):
            spark = _start(config, settings)
        try:
            yield spark
        except Exception as error:
            if (code := _exit_code()) is not None:
                raise JvmEnded(code) from error
            raise
        finally:
            _end(spark)


def warm_workers(spark: SparkSession, load: Callable[[], object] | None = None) -> None:
    """Start the Python workers, whose imports take seconds, and wait until they are there.

    `load` is called in each of them.
    """

    def same(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        if load is not None:
            load()
        yield from frames

    slots = tasks_at_once(spark)
    warmed = spark.range(0, slots, 1, slots).mapInPandas(same, "id long")
    warmed.write.format("noop").mode("overwrite").save()


def _start(config: SparkConfig, settings: Mapping[str, str]) -> SparkSession:
    """Launch the JVM without secrets: its command line can be read by all on the machine.

    What the driver's JVM itself is launched with, `spark.driver.*`, has to stand there.
    """
    secrets = [name for name in _given_as_secret(config) if not name.startswith("spark.driver.")]
    launch = SparkConf()
    builder = SparkSession.builder.appName(config.app_name)
    for name, value in settings.items():
        builder = builder.config(name, value)
        if name not in secrets:
            launch.set(name, value)
    SparkContext._ensure_initialized(conf=launch)
    return builder.getOrCreate()


def _given_as_secret(config: SparkConfig) -> list[str]:
    return [name for name, value in config.options.items() if isinstance(value, SecretStr)]


def _hidden(config: SparkConfig) -> str:
    """What Spark's pages and logs hide: what is named like a secret, and what was given as one."""
    names = [name.removeprefix("spark.hadoop.") for name in _given_as_secret(config)]
    return "|".join([NAMES_OF_SECRET_SETTINGS, "keystore", "sasl", "jaas", *map(re.escape, names)])


def _end(spark: SparkSession) -> None:
    """Stop Spark and wait until its JVM is gone: nothing is left running.

    A JVM that PySpark did not launch, as under spark-submit, is not ours to end.
    """
    gateway: Any = SparkContext._gateway
    jvm = _own_jvm()
    if jvm is None or jvm.poll() is None:
        spark.stop()
    if jvm is None or jvm.stdin is None:
        return
    gateway.shutdown()
    jvm.stdin.close()
    jvm.wait(_JVM_END_TIMEOUT_S)
    # PySpark launches a new one when it finds none.
    SparkContext._gateway = SparkContext._jvm = None


def _own_jvm() -> subprocess.Popen[bytes] | None:
    jvm: subprocess.Popen[bytes] | None = getattr(SparkContext._gateway, "proc", None)
    return jvm


def _exit_code() -> int | None:
    """That of our JVM, if it has ended; a killed one's sockets close a moment before."""
    jvm = _own_jvm()
    if jvm is None:
        return None
    try:
        return jvm.wait(_JVM_GONE_S)
    except subprocess.TimeoutExpired:
        return None


def _settings(
    config: SparkConfig,
    pipeline: PipelineConfig,
    locations: Iterable[str] = (),
    *,
    lasting: bool = False,
) -> dict[str, str]:
    given, submitted = revealed(config.options), SparkConf()
    _refuse_other_spellings(given)
    settings = {
        **_SETTINGS,
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(pipeline.arrow_batch_rows),
        "spark.sql.execution.arrow.maxBytesPerBatch": str(pipeline.arrow_batch_bytes),
        **given,
        "spark.sql.extensions": _join([DELTA_EXTENSION], given.get("spark.sql.extensions")),
    }
    for name, own in {
        "spark.redaction.regex": _hidden(config),
        "spark.sql.redaction.options.regex": f"{_hidden(config)}|url",
    }.items():
        settings[name] = f"(?i:{own})" + (f"|({given[name]})" if name in given else "")
    if config.jars == "fetch":
        jars = fetch_jars(_jar_sets(config, locations), default_jars_folder())
        others = given.get("spark.jars") or submitted.get("spark.jars")
        settings["spark.jars"] = _join(map(str, jars), others)
    master = config.master or submitted.get("spark.master") or DEFAULT_MASTER
    if master.startswith("local["):
        settings.setdefault("spark.driver.host", _LOOPBACK)
        if not lasting and (os.cpu_count() or 1) <= _FEW_CORES:
            settings.setdefault("spark.driver.defaultJavaOptions", _COMPILE_ONCE)
    return {**settings, "spark.master": master}


def _refuse_other_spellings(given: Iterable[str]) -> None:
    """
    Raises:
        SetupError: a setting differs from one of ours in case alone: Spark would not read it.
    """
    known = {name.lower(): name for name in (*_SETTINGS, *_EXTENDED)}
    for name in given:
        if (right := known.get(name.lower(), name)) != name:
            raise SetupError(
                f"'{name}' of spark.options is no setting of Spark, which minds the case of names; "
                f"write {right}"
            )


def _join(own: Iterable[str], others: str | None) -> str:
    """A list as Spark writes it, each of its parts once."""
    further = (part.strip() for part in (others or "").split(","))
    return ",".join(dict.fromkeys([*own, *filter(None, further)]))


def _jar_sets(config: SparkConfig, locations: Iterable[str]) -> Sequence[str]:
    if config.jar_sets is not None:
        return config.jar_sets
    in_s3 = any(scheme_of(one) in ("s3", "s3a", "s3n") for one in locations)
    return ["spark", *(["s3"] if in_s3 else [])]


def _use_java() -> None:
    """Let PySpark launch the very Java that was checked."""
    os.environ["JAVA_HOME"] = str(find_java().resolve().parent.parent)
    # Workers must run the interpreter that embedstream is installed in.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)


@contextmanager
def _standard_error_to(log_file: str | None) -> Iterator[None]:
    """Give the JVM, which inherits standard error when it is launched, a file instead."""
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
