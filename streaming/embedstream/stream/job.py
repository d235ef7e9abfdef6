"""The streaming job from Kafka to the table: start it, drain it, stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from embedstream.config.sections import StreamConfig
from embedstream.kafka.source import read_messages
from embedstream.spark.folder import Folder
from embedstream.stream.maintenance import INTERVAL_S, maintain_stream
from embedstream.table.address import TableAddress
from embedstream.table.delta import append, create_table, read_models, set_models
from embedstream.table.layout import fill_layout
from embedstream.worker.messages import Featurizer, featurize_messages
from embedstream.worker.tally import Tallies
from embedstream.worker.task import build_embedder
from embedstream_core.models.card import PreparedModel

__all__ = [
    "Stream",
    "Until",
    "build_featurizer",
    "list_ids",
    "record_models",
    "start_query",
    "start_stream",
    "stop_stream",
]

Until = Literal["stopped", "drained"]


@dataclass(frozen=True, slots=True)
class Stream:
    """A running job: its query, and the function that its workers run."""

    query: StreamingQuery
    featurizer: Featurizer

    @property
    def loads(self) -> int:
        """How often a worker loaded a model."""
        return sum(model.loads for model in self.featurizer.embedder.models)


def start_stream(
    spark: SparkSession,
    config: StreamConfig,
    models: Sequence[PreparedModel],
    *,
    until: Until = "stopped",
    tallies: Tallies | None = None,
    maintain_every_s: int = INTERVAL_S,
) -> Stream:
    """Start the query, which runs until it is stopped, or until it has read what the topics hold.

    `models` are those of the configuration's encoders, in the same order. Takes no lock: the caller
    must hold `claim_stream(...)` while the query runs, as `embedstream run` does.
    """
    create_table(spark, config.table, model_ids=list_ids(models))
    record_models(spark, config, models)
    Folder(spark, config.checkpoint).make_private()
    function = replace(build_featurizer(spark, config, models), tallies=tallies)
    return start_query(spark, config, function, until=until, maintain_every_s=maintain_every_s)


def record_models(
    spark: SparkSession, config: StreamConfig, models: Iterable[PreparedModel]
) -> None:
    """Record the models in the table that they fill from now on, unless it names them already."""
    table, model_ids = TableAddress.of(config.table), list_ids(models)
    if list(read_models(spark, table)) != model_ids:
        set_models(spark, table, model_ids)


def start_query(
    spark: SparkSession,
    config: StreamConfig,
    function: Featurizer,
    *,
    until: Until,
    maintain_every_s: int = INTERVAL_S,
) -> Stream:
    """Start the query on a table that exists and names the models of the function."""
    messages = read_messages(spark, config.kafka, tombstones=config.message.tombstones)
    outcomes = fill_layout(featurize_messages(messages, function), config.table)
    table = TableAddress.of(config.table)
    interval_s = None if until == "drained" else config.trigger.interval_s
    query = append(outcomes, table, checkpoint=config.checkpoint, interval_s=interval_s)
    threading.Thread(
        target=maintain_stream,
        args=(spark, query, table),
        kwargs={
            "load": function.embedder.load,
            "compact_every": config.table.compact_every,
            "interval_s": maintain_every_s,
            "ends_by_itself": until == "drained",
        },
        name="maintenance",
        daemon=True,
    ).start()
    return Stream(query, function)


def stop_stream(query: StreamingQuery, *, timeout_s: float) -> Literal["finished", "interrupted"]:
    """Let the micro-batch in flight finish and commit, then stop the query.

    After `timeout_s` the micro-batch is interrupted; the next start repeats it, and no row is
    doubled.

    Raises:
        StreamingQueryException: the query failed before it was stopped.
    """
    deadline = time.monotonic() + timeout_s
    in_flight = _next_batch_id(query)
    while query.status["isTriggerActive"] and query.isActive and _next_batch_id(query) == in_flight:
        if time.monotonic() >= deadline:
            query.stop()
            return "interrupted"
        time.sleep(0.05)
    if not query.isActive:
        # `stop` would not raise the error that ended the query.
        query.awaitTermination()
    query.stop()
    return "finished"


def _next_batch_id(query: StreamingQuery) -> int:
    last = query.lastProgress
    return 0 if last is None else last.batchId + 1


def build_featurizer(
    spark: SparkSession, config: StreamConfig, models: Sequence[PreparedModel]
) -> Featurizer:
    """Return the function that the workers run, and start to send them the models."""
    return Featurizer(
        embedder=build_embedder(spark, list(zip(models, config.all_encoders, strict=True)), config),
        reader=config.message.build_reader(),
    )


def list_ids(models: Iterable[PreparedModel]) -> list[str]:
    """Return the model_id of each model, in order."""
    return [model.card.model_id for model in models]
