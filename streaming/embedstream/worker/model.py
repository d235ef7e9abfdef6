"""The configured model, prepared on the driver, and the precision that all its workers use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as f

from embedstream.config.sections import EncoderConfig
from embedstream.spark.connect import is_connect, session_key
from embedstream.spark.errors import describe_error
from embedstream.spark.sizing import tasks_at_once
from embedstream.table.delta import MODEL_PROPERTY, table_properties
from embedstream.worker.broadcast import BroadcastModel, broadcast_model
from embedstream_core.engine.precision import Timing, apply_precision
from embedstream_core.errors import SetupError
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.model_id import PRECISIONS, ModelId, Precision
from embedstream_core.models.files.file_formats import is_fixed
from embedstream_core.models.prepare import Head, ModelSpec, PreparedModel, prepare_model

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORCED_PRECISION", "Choice", "choose_precision", "prepare"]

FORCED_PRECISION = "EMBEDSTREAM_AUTO_PRECISION"
"""The environment variable that names what `precision: auto` finds, without measuring."""

# Machines of a cluster differ, and one task may not show it; more than these show no more.
_MAX_TIMED_TASKS = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """A model in the precision that was chosen for it, and the reason in words."""

    model: PreparedModel
    reason: str

    @property
    def precision(self) -> Precision:
        return self.model.card.precision


def prepare(config: EncoderConfig, *, head: Head = "cut") -> PreparedModel:
    """Prepare and check the configured model; with `precision: auto` it is still in float32.

    Raises:
        SetupError: as `prepare_model` does.
    """
    declared = config.preprocessing
    preprocessing = Preprocessing(**dict(declared)) if declared else None
    model = prepare_model(
        ModelSpec(config.name, config.weights, config.sha256, preprocessing, head=head)
    )
    return model if config.precision == "auto" else apply_precision(model, config.precision)


def choose_precision(
    spark: SparkSession,
    model: PreparedModel,
    config: EncoderConfig,
    *,
    table: str | None = None,
) -> Choice:
    """Choose what a prepared model computes in, once for all workers of a stream or a query.

    `auto` takes the precision of the rows of this model that are in the `table`, an existing one;
    where there are none, the workers time both.

    Raises:
        SetupError: the model cannot be started on a worker, or the environment names no precision.
    """
    if is_fixed(model.card.encoder):
        return Choice(model, f"all that a program of {model.card.encoder} runs in")
    if config.precision != "auto":
        return Choice(model, "as set by encoder.precision")
    if table is not None and (recorded := _recorded_precision(spark, table, model.card.model_id)):
        return Choice(apply_precision(model, recorded), "as the rows in the table")
    if forced := os.environ.get(FORCED_PRECISION):
        if forced not in PRECISIONS:
            raise SetupError(f"{FORCED_PRECISION} is '{forced}'; it is {' or '.join(PRECISIONS)}")
        return Choice(apply_precision(model, forced), f"as {FORCED_PRECISION} says")
    timing = _timing(spark, model, config)
    return Choice(apply_precision(model, timing.better), f"measured on a worker: {timing}")


def _recorded_precision(spark: SparkSession, table: str, model_id: str) -> Precision | None:
    """Return the precision of the rows that a table has of a model; None without any.

    The model that fills the table is in its properties; only another one is looked for in its rows.
    """
    wanted = ModelId.parse(model_id)
    forms = {str(wanted.in_precision(one)): one for one in PRECISIONS}
    filled_by = table_properties(spark, table).get(MODEL_PROPERTY, "")
    if filled_by in forms:
        return forms[filled_by]
    rows = spark.read.format("delta").load(table).where(f.col("model_id").isin([*forms]))
    found = {row.model_id for row in rows.select("model_id").distinct().collect()}
    return next((one for form, one in forms.items() if form in found), None)


# Of a session's models: every query over one gets the same vectors.
_timings: dict[tuple[object, ...], Timing] = {}


def _timing(spark: SparkSession, model: PreparedModel, config: EncoderConfig) -> Timing:
    """Return the timing of the worker that gains least: no worker is to lose by the choice."""
    sent = broadcast_model(spark, model, config)
    key = session_key(spark), model.card, sent.settings
    if key not in _timings:
        try:
            _timings[key] = min(_timings_of_workers(spark, sent), key=lambda one: one.gain)
        except (PySparkException, Py4JJavaError) as error:
            raise SetupError(
                f"the encoder '{config.name}' cannot be started on a worker: "
                f"{describe_error(error)}; see the worker's log, or set encoder.precision to "
                "float32 to start without measuring"
            ) from error
    return _timings[key]


def _timings_of_workers(spark: SparkSession, model: BroadcastModel) -> list[Timing]:
    def time_both(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        import pandas as pd

        for _ in frames:
            timing = model.time_precisions()
            yield pd.DataFrame(
                {
                    "float32_ms": [timing.float32_ms],
                    "bfloat16_ms": [timing.bfloat16_ms],
                    "obstacle": [timing.obstacle],
                }
            )

    tasks = 1 if is_connect(spark) else min(tasks_at_once(spark), _MAX_TIMED_TASKS)
    schema = "float32_ms double, bfloat16_ms double, obstacle string"
    timed = spark.range(0, tasks, 1, tasks).mapInPandas(time_both, schema)
    return [Timing(**row.asDict()) for row in timed.collect()]
