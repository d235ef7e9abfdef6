"""Embed messages of a table again: chosen ones, its failures, or all of them with another model.

A replay works in chunks of one commit each, next to the live stream where the table's storage keeps
two writers apart, and in the stream's own driver anywhere. It embeds what has a row in the table,
so deleted rows stay deleted, and messages that the stream has not read yet are left to it. It reads
a message from Kafka while Kafka has it; after that it fetches a reference again from the row's
`uri`, and bytes and texts are lost.

An outcome's identity is its topic, partition, offset and model_id: a replay replaces the old
outcome, a backfill adds a missing one. So either can be interrupted and run again without doubling
a row. The clocks of driver and workers must agree to within the time from one replay to the next.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from embedstream.bulk.chunks import Chunk, commit_chunk
from embedstream.bulk.messages import (
    POSITION,
    locate_messages,
    read_messages_again,
    write_condition,
)
from embedstream.bulk.selection import Kind, OffsetRange, Selection
from embedstream.config.sections import StreamConfig
from embedstream.kafka.topics import TopicState
from embedstream.recovery.topic_ids import check_ids
from embedstream.spark.folder import OWN_FOLDER, Folder
from embedstream.spark.sizing import count_rows_per_commit
from embedstream.stream.job import build_featurizer
from embedstream.table.delta import find_conflict, quote_table
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream.worker.counts import CommitReport
from embedstream.worker.messages import featurize_messages
from embedstream_core.models.card import PreparedModel

__all__ = ["Plan", "Replay"]

_COLUMNS = OUTCOME_SCHEMA.names
_NEW_OUTCOMES = "embedstream_outcomes_done_again"

# Messages are counted within spans of so many offsets; a chunk reads whole spans.
_SPAN = 1000
# The most spans that a chunk reads, however few of their messages are selected.
_SPANS_A_CHUNK = 64

_MERGE_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """The chunks that are left, and the number of selected messages that are lost."""

    chunks: Sequence[Chunk[OffsetRange]]
    lost: int

    @property
    def rows(self) -> int:
        """The number of messages to embed."""
        return sum(chunk.rows for chunk in self.chunks)


class Replay:
    """One replay or backfill of a table, new or resumed.

    A note next to the table says when it began, until `finish`: newer rows are done.
    """

    def __init__(
        self,
        spark: SparkSession,
        config: StreamConfig,
        model: PreparedModel,
        topics: Mapping[str, TopicState],
        *,
        kind: Kind,
        selection: Selection | None = None,
    ) -> None:
        """Write the note, or read it if the same work was begun before.

        Raises:
            SetupError: a topic is not the one whose messages the table holds, or the note cannot be
                read.
        """
        self._spark = spark
        self._config = config
        self._model_id = model.card.model_id
        self._topics = topics
        self._kind = kind
        self._selection = selection or Selection()
        self._featurizer = build_featurizer(spark, config, model)
        self._folder = Folder(spark, config.table.path)
        check_ids(self._folder, topics)
        work = {"kind": kind, "model_id": self._model_id, "selection": asdict(self._selection)}
        digest = hashlib.sha256(json.dumps(work, default=str, sort_keys=True).encode()).hexdigest()
        self._note = f"{OWN_FOLDER}/{kind}-{digest[:16]}.json"
        self._began = datetime.now(UTC)
        note = json.dumps({**work, "began": self._began.isoformat()}, default=str)
        if not self._folder.create(self._note, note):
            began = self._folder.parse(
                self._note,
                lambda text: datetime.fromisoformat(json.loads(text)["began"]),
                meaning=f"which says when the {kind} began",
                remedy="delete it to start over",
            )
            self._began = began or self._began

    def plan(self, *, chunk_rows: int | None = None) -> Plan:
        """Return the work that is left; a chunk has as many rows as a commit of the stream."""
        located = self._locate_remaining()
        lost = located.where(~(f.col("in_kafka") | f.col("has_reference"))).count()
        spans = (
            located.where(f.col("in_kafka") | f.col("has_reference"))
            .groupBy("topic", "partition", f.floor(f.col("offset") / _SPAN).alias("span"))
            .agg(f.count("*").alias("rows"), f.min("offset").alias("first"), f.max("offset"))
            .orderBy("span", "topic", "partition")
            .collect()
        )
        limit = chunk_rows or count_rows_per_commit(self._spark)
        chunks: list[Chunk[OffsetRange]] = []
        for topic, partition, _, rows, first, last in spans:
            part = OffsetRange(topic, partition, first, last)
            if (
                chunks
                and chunks[-1].rows + rows <= limit
                and len(chunks[-1].parts) < _SPANS_A_CHUNK
            ):
                chunks[-1] = Chunk((*chunks[-1].parts, part), chunks[-1].rows + rows)
            else:
                chunks.append(Chunk((part,), rows))
        return Plan(chunks, lost)

    def run(self, chunk: Chunk[OffsetRange]) -> CommitReport:
        """Embed a chunk and commit its outcomes."""
        located = self._locate_remaining().where(write_condition(chunk.parts))
        messages = read_messages_again(
            self._spark, self._config.kafka, self._topics, located, chunk.parts
        )
        outcomes = featurize_messages(messages, self._featurizer)
        return commit_chunk(outcomes, lambda made: self._merge(made, chunk))

    def finish(self) -> None:
        """Delete the note: all is done, and the same command starts over."""
        self._folder.delete(self._note)

    def _locate_remaining(self) -> DataFrame:
        """Return a row for each message that is left, with the columns of `locate_messages`."""
        table = self._spark.read.format("delta").load(self._config.table.path)
        chosen = f.col("processed_at") < f.lit(self._began)
        selection = self._selection
        if selection.offsets:
            chosen &= f.expr(write_condition(selection.offsets))
        if selection.since:
            chosen &= f.col("timestamp") >= selection.since
        if selection.until:
            chosen &= f.col("timestamp") < selection.until
        if selection.failures or selection.codes:
            chosen &= f.col("error").isNotNull()
        if selection.codes:
            chosen &= f.col("error.code").isin(*selection.codes)
        is_ours = f.col("model_id") == self._model_id
        ours = table.where(is_ours)
        if self._kind == "replay":
            rows = ours.where(chosen)
        else:
            others = table.where(~is_ours & chosen).dropDuplicates(POSITION)
            rows = others.join(ours.select(*POSITION), POSITION, "left_anti")
        return locate_messages(rows, self._topics)

    def _merge(self, outcomes: DataFrame, chunk: Chunk[OffsetRange]) -> None:
        if self._kind == "replay":
            pairs = ", ".join(f"`{name}` = s.`{name}`" for name in _COLUMNS)
            action = f"WHEN MATCHED THEN UPDATE SET {pairs}"
        else:
            names = ", ".join(f"`{name}`" for name in _COLUMNS)
            values = ", ".join(f"s.`{name}`" for name in _COLUMNS)
            action = f"WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({values})"  # noqa: S608
        identity = " AND ".join(f"t.`{name}` = s.`{name}`" for name in [*POSITION, "model_id"])
        # The ranges are constants, which let Delta skip the files of other positions.
        ranges = write_condition(chunk.parts, alias="t.")
        outcomes.createOrReplaceTempView(_NEW_OUTCOMES)
        for attempt in range(1, _MERGE_ATTEMPTS + 1):
            try:
                self._spark.sql(
                    f"MERGE INTO {quote_table(self._config.table.path)} AS t USING {_NEW_OUTCOMES} "
                    f"AS s ON {identity} AND ({ranges}) {action}"
                )
                return
            except (PySparkException, Py4JJavaError) as error:
                # The live stream compacts the table's files now and then, also during a merge.
                if attempt == _MERGE_ATTEMPTS or find_conflict(error) != "concurrent":
                    raise
                time.sleep(0.2 * 2**attempt)
