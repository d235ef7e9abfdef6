"""Spark work from a terminal: its session, its end by a signal, its errors as sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark import SparkFiles
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from embedstream.cli import console
from embedstream.config.sections import BulkFilesConfig, EncoderConfig, StreamConfig
from embedstream.spark.local_disk import explain_disk_error
from embedstream.spark.session import open_session
from embedstream.table.catalog import resolve_table
from embedstream_core.errors import EmbedstreamError

if TYPE_CHECKING:
    from embedstream_core.models.card import PreparedModel

__all__ = [
    "StreamFailed",
    "explain_errors",
    "open_session_and_models",
    "open_session_on_table",
]

Config = TypeVar("Config", bound=StreamConfig | BulkFilesConfig)


class StreamFailed(EmbedstreamError):
    """An error ended a stream, a replay or a batch; re-run the same command to resume."""


@contextmanager
def open_session_on_table(config: Config) -> Iterator[tuple[SparkSession, Config]]:
    """Open the session of a command that needs no model.

    Yields the session, and the configuration with the folder of its table.
    """
    session = open_session(config.spark, config.pipeline, config.locations)
    with console.show_status("starting Spark") as status, session as spark:
        status.stop()
        yield spark, resolve_table(spark, config)


@contextmanager
def open_session_and_models(
    config: Config, *locations: str, lasting: bool = False
) -> Iterator[tuple[SparkSession, Config, Sequence[Callable[[], PreparedModel]]]]:
    """Open the session while a thread prepares the models: each takes a core for seconds.

    Yields the session, which can read and write the configuration's locations and the additional
    ones, the configuration with the folder of its table, and a function for each encoder that waits
    for its model.
    """

    def prepare_model(encoder: EncoderConfig) -> PreparedModel:
        from embedstream.worker.model import prepare

        return prepare(encoder)

    all_locations = [*config.locations, *locations]
    with ThreadPoolExecutor(1) as pool, console.show_status("starting Spark") as status:
        preparing = [pool.submit(prepare_model, encoder) for encoder in config.all_encoders]
        session = open_session(
            config.spark,
            config.pipeline,
            all_locations,
            lasting=lasting,
            encoders=[encoder.name for encoder in config.all_encoders],
        )
        with session as spark:
            status.stop()
            yield spark, resolve_table(spark, config), [one.result for one in preparing]


@contextmanager
def explain_errors(
    locations: Mapping[str, str], explain: Callable[[Exception], str | None]
) -> Iterator[None]:
    """Convert an error into a sentence: about a full or broken disk, else as `explain` says.

    Raises:
        StreamFailed: the work ended by an error that has an explanation.
    """
    try:
        yield
    except (PySparkException, Py4JJavaError, OSError) as error:
        from embedstream.table.features import explain_violation

        scratch = SparkFiles.getRootDirectory()
        reason = (
            explain_disk_error(error, {**locations, "spark.local.dir": scratch})
            or explain_violation(error)
            or explain(error)
        )
        if reason is None:
            raise
        raise StreamFailed(reason) from error
