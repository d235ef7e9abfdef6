"""The SparkSession: opened, warmed and stopped with its JVM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from embedstream.config.sections import PipelineConfig, SparkConfig
from embedstream.spark.java import find_java
from embedstream.spark.launch import CLASS_PATH_VARIABLE, LOOPBACK, list_secrets, plan_launch
from embedstream.spark.sizing import count_parallel_tasks
from embedstream_core.errors import EmbedstreamError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENCODERS_VARIABLE", "JvmEnded", "open_session", "start_workers", "warm_workers"]

ENCODERS_VARIABLE = "EMBEDSTREAM_WORKER_ENCODERS"
"""The environment variable that names the encoders to `embedstream.worker.daemon`, with spaces."""

# A JVM that writes a class archive takes a minute for it on a busy machine.
_JVM_END_TIMEOUT_S = 300
_JVM_GONE_S = 0.5


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
            os.environ.setdefault("SPARK_LOCAL_IP", LOOPBACK)
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


def start_workers(spark: SparkSession) -> None:
    """Start the processes that fork the Python workers, and wait for their imports.

    The imports take seconds. A task slot stays free for the driver's own jobs.
    """
    _run_in_workers(spark, max(1, count_parallel_tasks(spark) - 1), lambda: None)


def warm_workers(spark: SparkSession, load: Callable[[], object]) -> None:
    """Call `load` in every Python worker, and wait for it."""
    _run_in_workers(spark, count_parallel_tasks(spark), load)


def _run_in_workers(spark: SparkSession, tasks: int, call: Callable[[], object]) -> None:
    def same(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        call()
        yield from batches

    called = spark.range(0, tasks, 1, tasks).mapInArrow(same, "id long")
    called.write.format("noop").mode("overwrite").save()


@contextmanager
def _extend_class_path(jars: Sequence[Path]) -> Iterator[None]:
    """Add jars to the end of the class path of a JVM that is launched within the block."""
    before = os.environ.get(CLASS_PATH_VARIABLE)
    if jars:
        parts = [*map(str, jars), *filter(None, [before])]
        os.environ[CLASS_PATH_VARIABLE] = os.pathsep.join(parts)
    try:
        yield
    finally:
        os.environ.pop(CLASS_PATH_VARIABLE, None)
        if before is not None:
            os.environ[CLASS_PATH_VARIABLE] = before


def _start(config: SparkConfig, settings: Mapping[str, str]) -> SparkSession:
    """Launch the JVM without secrets, since every user of the machine can read its command line.

    `spark.driver.*` settings are exempt: the driver's JVM is launched with them.
    """
    secrets = [name for name in list_secrets(config) if not name.startswith("spark.driver.")]
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
