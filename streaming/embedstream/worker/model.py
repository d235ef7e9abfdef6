"""The configured model: preparation on the driver, and one precision for all its workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from embedstream.config.sections import EncoderConfig
from embedstream.spark.connect import get_session_key, is_connect
from embedstream.spark.errors import describe_error
from embedstream.spark.sizing import count_parallel_tasks
from embedstream.table.address import TableAddress
from embedstream.table.delta import read_models
from embedstream.worker.broadcast import broadcast_model
from embedstream.worker.model_spec import build_spec
from embedstream_core.engine.precision import Timing, apply_precision
from embedstream_core.errors import SetupError
from embedstream_core.model_id import PRECISIONS, ModelId, Precision
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.files.file_formats import is_fixed
from embedstream_core.models.prepare import Head, prepare_model

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORCED_PRECISION", "Choice", "choose_precision", "prepare"]

FORCED_PRECISION = "EMBEDSTREAM_AUTO_PRECISION"
"""The environment variable that sets the result of `precision: auto` without a measurement."""

# Machines of a cluster differ, so one task is not enough; more tasks than this add nothing.
_MAX_TIMED_TASKS = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """A model in its chosen precision, and the reason of the choice."""

    model: PreparedModel
    reason: str

    @property
    def precision(self) -> Precision:
        """The precision that was chosen."""
        return self.model.card.precision


# By session and model, so that all queries of a session get the same vectors.
_timings: dict[tuple[object, ...], Timing] = {}


def prepare(config: EncoderConfig, *, head: Head = "cut") -> PreparedModel:
    """Prepare and check the configured model; with `precision: auto` it is still in float32."""
    model = prepare_model(build_spec(config, head=head))
    return model if config.precision == "auto" else apply_precision(model, config.precision)


def choose_precision(
    spark: SparkSession,
    model: PreparedModel,
    config: EncoderConfig,
    *,
    table: TableAddress | None = None,
) -> Choice:
    """Choose the precision of a prepared model, once for all workers of a stream or a query.

    `auto` uses the precision of this model's rows in the existing `table`; without such rows, the
    workers time both precisions.

    Raises:
        SetupError: a worker cannot start the model, or the environment variable is no precision.
    """
    if is_fixed(model.card.encoder):
        return Choice(model, f"a program of {model.card.encoder} runs in nothing else")
    if config.precision != "auto":
        return Choice(model, "as set by encoder.precision")
    if table is not None and (recorded := _find_recorded(spark, table, model.card.model_id)):
        return Choice(apply_precision(model, recorded), "as the rows in the table")
    if forced := os.environ.get(FORCED_PRECISION):
        if forced not in PRECISIONS:
            raise SetupError(f"{FORCED_PRECISION} is '{forced}'; it is {' or '.join(PRECISIONS)}")
        return Choice(apply_precision(model, forced), f"as set by {FORCED_PRECISION}")
    timing = _time_on_workers(spark, model, config)
    return Choice(apply_precision(model, timing.better), f"measured on a worker: {timing}")


def _find_recorded(spark: SparkSession, table: TableAddress, model_id: str) -> Precision | None:
    """Return the precision of a model's rows in a table; None without any.

    The table's properties name the model that fills it; only another one needs a query.
    """
    wanted = ModelId.parse(model_id)
    forms = {str(wanted.in_precision(one)): one for one in PRECISIONS}
    for filled_by in read_models(spark, table):
        if filled_by in forms:
            return forms[filled_by]
    rows = table.read(spark).where(f.col("model_id").isin([*forms]))
    found = {row.model_id for row in rows.select("model_id").distinct().collect()}
    return next((one for form, one in forms.items() if form in found), None)


def _time_on_workers(spark: SparkSession, model: PreparedModel, config: EncoderConfig) -> Timing:
    """Return the timing of the worker that gains least, so that no worker becomes slower."""
    sent = broadcast_model(spark, model, config)
    key = get_session_key(spark), model.card, sent.settings
    if key in _timings:
        return _timings[key]

    def time_both(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        columns = {"float32_ms": pa.float64(), "bfloat16_ms": pa.float64(), "obstacle": pa.string()}
        for _ in batches:
            timing = asdict(sent.time_precisions())
            yield pa.RecordBatch.from_pylist([timing], pa.schema(columns))

    tasks = 1 if is_connect(spark) else min(count_parallel_tasks(spark), _MAX_TIMED_TASKS)
    schema = "float32_ms double, bfloat16_ms double, obstacle string"
    try:
        rows = spark.range(0, tasks, 1, tasks).mapInArrow(time_both, schema).collect()
    except (PySparkException, Py4JJavaError) as error:
        raise SetupError(
            f"the encoder '{config.name}' cannot be started on a worker: {describe_error(error)}; "
            "see the worker's log, or set encoder.precision to float32 to start without measuring"
        ) from error
    timings = (Timing(**row.asDict()) for row in rows)
    return _timings.setdefault(key, min(timings, key=lambda one: one.gain))
