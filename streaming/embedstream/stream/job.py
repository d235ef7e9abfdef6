"""The main job: source, featurize, sink; start it, drain it, stop it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.streaming.readwriter import DataStreamWriter

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.kafka.source import read_messages
from embedstream.spark.folder import Folder
from embedstream.stream.maintenance import keep_up
from embedstream.table.delta import append, create_table, set_model
from embedstream.worker.broadcast import BroadcastModel
from embedstream.worker.counts import OutcomeCounts
from embedstream.worker.messages import Featurizer, featurize_messages
from embedstream.worker.task import build_embedder
from embedstream_core.models.prepare import PreparedModel

__all__ = ["Stream", "Until", "make_table", "start_stream", "stop_stream"]

Until = Literal["stopped", "drained"]


@dataclass(frozen=True, slots=True)
class Stream:
    """A running job: its query, and the model that its workers share."""

    query: StreamingQuery
    model: BroadcastModel


def start_stream(
    spark: SparkSession,
    config: StreamConfig,
    model: PreparedModel,
    *,
    until: Until = "stopped",
    counts: OutcomeCounts | None = None,
) -> Stream:
    """Start the query: it runs until it is stopped, or until what the topics hold now is done.

    It keeps no other driver out: hold `claim.claimed` meanwhile, as `embedstream run` does.
    """
    make_table(spark, config, model)
    set_model(spark, config.table.path, model.card.model_id)
    Folder(spark, config.checkpoint).make_private()
    function = replace(featurizer(spark, config, model), counts=counts)
    outcomes = featurize_messages(read_messages(spark, config.kafka), function)
    writer = append(outcomes, config.table.path, checkpoint=config.checkpoint)
    query = _triggered(writer, config, until).start()
    embedder, table = function.embedder, config.table
    looks_after = partial(
        keep_up,
        spark,
        query,
        table.path,
        load=embedder.load,
        compact_every=table.compact_every,
    )
    threading.Thread(target=looks_after, name="upkeep", daemon=True).start()
    return Stream(query, embedder.model)


def make_table(
    spark: SparkSession, config: StreamConfig | BulkFilesConfig, model: PreparedModel
) -> None:
    """Create the table where there is none; before its folder is claimed.

    Delta creates none in a folder that holds a file, such as a claim, or a log without an entry,
    which a driver leaves that is killed while it creates the table.
    """
    Folder(spark, f"{config.table.path}/_delta_log").remove_if_empty()
    create_table(
        spark,
        config.table.path,
        model_id=model.card.model_id,
        properties=config.table.properties,
    )


def _triggered(writer: DataStreamWriter, config: StreamConfig, until: Until) -> DataStreamWriter:
    if until == "drained":
        return writer.trigger(availableNow=True)
    interval_ms = int(config.trigger.interval_s * 1000)
    return writer.trigger(processingTime=f"{interval_ms} milliseconds")


def stop_stream(query: StreamingQuery, *, timeout_s: float) -> Literal["finished", "interrupted"]:
    """Let the micro-batch in flight finish and commit, then stop the query.

    After `timeout_s` it is interrupted; the next start repeats it, and no row is doubled.
    """
    deadline = time.monotonic() + timeout_s
    in_flight = _next_batch_id(query)
    finished = False
    while not finished and time.monotonic() < deadline:
        idle = not query.status["isTriggerActive"]
        finished = idle or not query.isActive or _next_batch_id(query) > in_flight
        if not finished:
            time.sleep(0.05)
    query.stop()
    return "finished" if finished else "interrupted"


def _next_batch_id(query: StreamingQuery) -> int:
    last = query.lastProgress
    return 0 if last is None else last.batchId + 1


def featurizer(spark: SparkSession, config: StreamConfig, model: PreparedModel) -> Featurizer:
    """The function that the workers run, with the model on its way to them."""
    return Featurizer(
        embedder=build_embedder(spark, model, config.encoder, config),
        message_format=config.message.format,
        id_header=config.message.id_header,
        transport=config.pipeline.transport,
    )
