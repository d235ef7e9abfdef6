"""Embed messages of a table again: chosen ones, its failures, or all of them with another model.

A replay works in chunks of one commit each, next to the live stream where the table's storage keeps
two writers apart, and in the stream's own driver anywhere. It embeds what has a row in the table,
so deleted rows stay deleted, and messages that the stream has not read yet are left to it; what a
tombstone hides is left out too. It reads a message from Kafka while Kafka has it; after that it
fetches a reference again from the row's `uri`, and bytes and texts are lost.

An outcome's identity is its topic, partition, offset and model_id, which is null where no encoder
was chosen. A replay embeds a message again with all configured models, and replaces their rows and
the null one by the new outcomes; the rows of other models stay. A backfill adds the rows of another
model. It offers that model the messages that carry what it accepts, by the type in the rows, and
those whose type is unknown; it replaces a null row that says no encoder accepted the type. So
either can be interrupted and run again without doubling a row. The clocks of driver and workers
must agree to within the time from one replay to the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from embedstream.bulk.chunks import Chunk, commit_chunk
from embedstream.bulk.messages import (
    POSITION,
    featurize_again,
    locate_messages,
    write_condition,
)
from embedstream.bulk.selection import Kind, OffsetRange, Selection
from embedstream.config.sections import StreamConfig
from embedstream.kafka.topics import TopicState
from embedstream.recovery.topic_ids import check_ids
from embedstream.spark.folder import OWN_FOLDER, Folder
from embedstream.spark.sizing import count_rows_per_commit
from embedstream.stream.job import build_featurizer, list_ids
from embedstream.table.address import TableAddress
from embedstream.table.conflicts import commit_with_retries
from embedstream.table.delta import check_rewritable
from embedstream.table.layout import build_table_schema, fill_layout
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream.table.views import hide_deleted
from embedstream.worker.counts import CommitReport
from embedstream_core.media.detect import find_modality
from embedstream_core.models.card import PreparedModel

__all__ = ["Plan", "Replay"]

_COLUMNS = OUTCOME_SCHEMA.names
_IDENTITY = [*POSITION, "model_id"]
# What `locate_messages` and `featurize_again` need of a row; equal in all rows of a message.
_MESSAGE_COLUMNS = ["timestamp", "key", "image_id", "uri", "attributes"]
_NEW_OUTCOMES = "embedstream_outcomes_done_again"

# Messages are counted within spans of so many offsets; a chunk reads whole spans.
_SPAN = 1000
# The most spans that a chunk reads, however few of their messages are selected.
_SPANS_A_CHUNK = 64


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
        models: Sequence[PreparedModel],
        topics: Mapping[str, TopicState],
        *,
        kind: Kind,
        selection: Selection | None = None,
    ) -> None:
        """Write the note, or read it if the same work was begun before.

        Raises:
            SetupError: a topic is not the one whose messages the table holds, or the table is
                append-only, or the note cannot be read.
        """
        check_rewritable(spark, TableAddress.of(config.table), purpose=f"a {kind}")
        self._spark = spark
        self._config = config
        self._model_ids = list_ids(models)
        self._topics = topics
        self._kind = kind
        self._selection = selection or Selection()
        self._featurizer = build_featurizer(spark, config, models)
        self._table = TableAddress.of(config.table)
        self._folder = Folder(spark, config.table.path)
        check_ids(self._folder, topics)
        work = {"kind": kind, "model_ids": self._model_ids, "selection": asdict(self._selection)}
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
        outcomes = featurize_again(
            self._spark,
            self._config.kafka,
            self._topics,
            located,
            ranges=chunk.parts,
            featurizer=self._featurizer,
        )
        return commit_chunk(outcomes, lambda made: self._merge(made, chunk))

    def finish(self) -> None:
        """Delete the note: all is done, and the same command starts over."""
        self._folder.delete(self._note)

    def _locate_remaining(self) -> DataFrame:
        """Return a row for each message that is left, with the columns of `locate_messages`."""
        table = hide_deleted(self._table.read(self._spark))
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
        ours, unowned = f.col("model_id").isin(self._model_ids), f.col("model_id").isNull()
        kept = [f.first(name).alias(name) for name in _MESSAGE_COLUMNS]
        if self._kind == "replay":
            rows = table.where((ours | unowned) & chosen).groupBy(*POSITION).agg(*kept)
        else:
            others = table.where((~ours | unowned) & chosen)
            found = f.max("media.type").alias("type")
            is_offered = f.col("type").isNull() | f.col("type").isin(self._accepted_types)
            rows = others.groupBy(*POSITION).agg(*kept, found).where(is_offered)
            rows = rows.join(table.where(ours).select(*POSITION), POSITION, "left_anti")
        return locate_messages(rows, self._topics)

    @cached_property
    def _accepted_types(self) -> list[str]:
        """The MIME types in the table, when this is first read, whose content the models accept."""
        table = self._table.read(self._spark)
        types = [row.type for row in table.select("media.type").distinct().collect() if row.type]
        return [one for one in types if find_modality(one) in self._featurizer.embedder.modalities]

    def _merge(self, outcomes: DataFrame, chunk: Chunk[OffsetRange]) -> None:
        """Replace or add rows in one commit."""
        # The ranges are constants, which let Delta skip the files of other positions.
        ranges = write_condition(chunk.parts, alias="t.")
        columns = build_table_schema(self._config.table).names
        names = ", ".join(f"`{name}`" for name in columns)
        values = ", ".join(f"s.`{name}`" for name in columns)
        pairs = ", ".join(f"`{name}` = s.`{name}`" for name in columns)
        update = f"WHEN MATCHED THEN UPDATE SET {pairs}" if self._kind == "replay" else ""
        same = " AND ".join(f"t.`{name}` = s.`{name}`" for name in POSITION)

        def merge() -> None:
            rows = self._add_obsolete(outcomes, chunk)
            fill_layout(rows, self._config.table).createOrReplaceTempView(_NEW_OUTCOMES)
            self._spark.sql(
                f"MERGE INTO {self._table.sql} AS t USING {_NEW_OUTCOMES} "  # noqa: S608
                f"AS s ON {same} AND t.model_id <=> s.model_id AND ({ranges}) "
                f"WHEN MATCHED AND s.obsolete THEN DELETE {update} "
                f"WHEN NOT MATCHED AND NOT s.obsolete THEN INSERT ({names}) VALUES ({values})"
            )

        commit_with_retries(merge)

    def _add_obsolete(self, outcomes: DataFrame, chunk: Chunk[OffsetRange]) -> DataFrame:
        """Add the rows that must go, with true in the column `obsolete`.

        Those are rows of the same messages that the outcomes do not replace by identity. Outcomes
        of messages whose rows were all deleted in the meantime are left out.
        """
        table = self._table.read(self._spark)
        present = table.where(write_condition(chunk.parts))
        unowned = f.col("model_id").isNull()
        if self._kind == "replay":
            replaced = present.where(unowned | f.col("model_id").isin(self._model_ids))
        else:
            # A null row of an unknown type says why the stream's own models have no row.
            replaced = present.where(unowned & f.col("media.type").isin(self._accepted_types))
        made = outcomes.join(present.select(*POSITION).distinct(), POSITION, "left_semi")
        identity = [f.col(f"old.{name}").eqNullSafe(f.col(f"new.{name}")) for name in _IDENTITY]
        obsolete = (
            replaced.join(made.select(*POSITION).distinct(), POSITION, "left_semi")
            .alias("old")
            .join(made.alias("new"), identity, "left_anti")
        )
        return (
            made.select(*_COLUMNS)
            .withColumn("obsolete", f.lit(False))
            .unionByName(obsolete.select(*_COLUMNS).withColumn("obsolete", f.lit(True)))
        )
