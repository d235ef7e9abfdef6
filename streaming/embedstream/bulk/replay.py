"""Embed messages of a table again: chosen ones, its failures, or all of them with another model.

It works in chunks of one commit each, beside the live stream where the table's storage keeps two
writers apart, and in the stream's own driver anywhere. What is done again is what has a row
in the table, so rows that were deleted stay deleted, and messages that the stream has still to read
are left to it. A message that Kafka still holds is read there; of one that is gone, a reference is
fetched anew from the row's `uri`, and image bytes cannot be had.

An outcome's identity is its topic, partition, offset and model_id: a replay puts the new outcome in
the place of the old one, a backfill adds what has none yet. So either may be interrupted, and run
again, without doubling a row. The clocks of driver and workers must agree to within the time from
one replay to its repetition.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import reduce
from itertools import zip_longest
from typing import Literal

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from embedstream.bulk.chunks import ChunkReport, commit_chunk
from embedstream.config.sections import StreamConfig
from embedstream.kafka.source import MESSAGE_COLUMNS, TopicState, client_options
from embedstream.recovery.topic_ids import check_ids
from embedstream.spark.folder import OWN_FOLDER, Folder
from embedstream.spark.sizing import rows_a_commit, tasks_at_once
from embedstream.stream.job import featurizer
from embedstream.table.delta import literal, table_name
from embedstream.table.rows import OUTCOME_SCHEMA
from embedstream.worker.messages import featurize_messages
from embedstream_core.errors import SetupError
from embedstream_core.models.prepare import PreparedModel
from embedstream_core.redaction import REDACTED

__all__ = ["Chunk", "OffsetRange", "Plan", "Replay", "Selection"]

Kind = Literal["replay", "backfill"]

_POSITION = ["topic", "partition", "offset"]
_COLUMNS = OUTCOME_SCHEMA.names
_OUTCOMES = "embedstream_outcomes_done_again"

# Wanted messages are counted within spans of so many offsets; a chunk reads whole spans.
_SPAN = 1000
# A chunk reads at most so many spans, however few of their messages are wanted.
_SPANS_A_CHUNK = 64

_MERGE_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets of a partition, the last one included."""

    topic: str
    partition: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of the table; all that are given must hold.

    `since` and `until` are of the message's timestamp in Kafka, the latter excluded. `codes` are of
    failures.
    """

    offsets: tuple[OffsetRange, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    failures: bool = False
    codes: tuple[str, ...] = ()

    def condition(self) -> Column:
        chosen = f.lit(True)
        if self.offsets:
            chosen &= f.expr(_within(self.offsets))
        if self.since:
            chosen &= f.col("timestamp") >= self.since
        if self.until:
            chosen &= f.col("timestamp") < self.until
        if self.failures or self.codes:
            chosen &= f.col("error").isNotNull()
        if self.codes:
            chosen &= f.col("error.code").isin(*self.codes)
        return chosen


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is done in one commit: so many rows, in these ranges."""

    ranges: tuple[OffsetRange, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The chunks that are left, and how many messages can no longer be had."""

    chunks: Sequence[Chunk]
    gone: int

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)


class Replay:
    """One replay or backfill of a table, interrupted before or not.

    A replay that was interrupted goes on where it was, until its end: what it did not finish is
    noted beside the table.
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
        """
        Raises:
            SetupError: a topic is another than the one whose messages the table holds.
        """
        self._spark = spark
        self._config = config
        self._model_id = model.card.model_id
        self._topics = topics
        self._kind = kind
        self._selection = selection or Selection()
        self._featurizer = featurizer(spark, config, model)
        folder = Folder(spark, config.table.path)
        check_ids(folder, topics)
        self._note = _Note.of(folder, kind, self._model_id, self._selection)

    def plan(self, *, chunk_rows: int | None = None) -> Plan:
        """What is left to be done now; nothing is written but the note that it has begun.

        By default there are as many rows in a chunk as the stream commits.
        """
        wanted = self._wanted()
        gone = wanted.where(~(f.col("in_kafka") | f.col("refers"))).count()
        spans = (
            _obtainable(wanted)
            .groupBy("topic", "partition", f.floor(f.col("offset") / _SPAN).alias("span"))
            .agg(f.count("*").alias("rows"), f.min("offset").alias("first"), f.max("offset"))
            .orderBy("span", "topic", "partition")
            .collect()
        )
        counted = [
            (OffsetRange(topic, partition, first, last), rows)
            for topic, partition, _, rows, first, last in spans
        ]
        return Plan(list(_chunks(counted, chunk_rows or rows_a_commit(self._spark))), gone)

    def run(self, chunk: Chunk) -> ChunkReport:
        """Embed a chunk and commit its outcomes."""
        outcomes = featurize_messages(self._messages(chunk), self._featurizer)
        return commit_chunk(outcomes, lambda made: self._merge(made, chunk))

    def finish(self) -> None:
        """Note that all is done: the next one begins anew."""
        self._note.remove()

    def _wanted(self) -> DataFrame:
        """A row for each message still to be done: is it `in_kafka`, or `refers` its row?"""
        table = self._spark.read.format("delta").load(self._config.table.path)
        ours = table.where(f.col("model_id") == self._model_id)
        before = f.col("processed_at") < f.lit(self._note.began)
        if self._kind == "replay":
            rows = ours.where(before & self._selection.condition())
        else:
            others = table.where((f.col("model_id") != self._model_id) & before)
            chosen = others.where(self._selection.condition()).dropDuplicates(_POSITION)
            rows = chosen.join(ours.select(*_POSITION), _POSITION, "left_anti")
        return rows.withColumns({"in_kafka": self._in_kafka(), "refers": _refers()})

    def _in_kafka(self) -> Column:
        held = [
            (f.col("topic") == name) & (f.col("partition") == number) & (f.col("offset") >= offset)
            for name, state in self._topics.items()
            for number, offset in state.earliest.items()
        ]
        return reduce(Column.__or__, held, f.lit(False))

    def _messages(self, chunk: Chunk) -> DataFrame:
        wanted = self._wanted().where(_within(chunk.ranges))
        positions = wanted.where("in_kafka").select(*_POSITION)
        of_rows = _as_messages(wanted.where(~f.col("in_kafka") & f.col("refers")))
        read = [self._read(ranges) for ranges in _layers(chunk.ranges, self._topics)]
        held = [messages.join(f.broadcast(positions), _POSITION, "left_semi") for messages in read]
        return reduce(DataFrame.unionByName, held, of_rows).select(*MESSAGE_COLUMNS)

    def _read(self, ranges: Sequence[OffsetRange]) -> DataFrame:
        """Messages of Kafka; no two ranges are of one partition."""
        partitions: dict[str, list[int]] = defaultdict(list)
        first: dict[str, dict[int, int]] = defaultdict(dict)
        after: dict[str, dict[int, int]] = defaultdict(dict)
        for one in ranges:
            partitions[one.topic].append(one.partition)
            first[one.topic][one.partition] = one.first
            after[one.topic][one.partition] = one.last + 1
        kafka = self._config.kafka
        options = {
            **client_options(kafka),
            "assign": json.dumps(partitions),
            "startingOffsets": json.dumps(first),
            "endingOffsets": json.dumps(after),
            "includeHeaders": "true",
            "kafka.isolation.level": kafka.isolation,
            "minPartitions": str(tasks_at_once(self._spark)),
        }
        messages = self._spark.read.format("kafka").options(**options).load()
        return messages.select(*MESSAGE_COLUMNS).where(f.col("value").isNotNull())

    def _merge(self, outcomes: DataFrame, chunk: Chunk) -> None:
        outcomes.createOrReplaceTempView(_OUTCOMES)
        statement = self._merge_statement(chunk)
        for attempt in range(1, _MERGE_ATTEMPTS + 1):
            try:
                self._spark.sql(statement)
                return
            except (PySparkException, Py4JJavaError) as error:
                # The live stream compacts the table's files now and then, under a merge too.
                if attempt == _MERGE_ATTEMPTS or not _is_conflict(error):
                    raise
                time.sleep(0.2 * 2**attempt)

    def _merge_statement(self, chunk: Chunk) -> str:
        table = table_name(self._config.table.path)
        identity = " AND ".join(f"t.`{name}` = s.`{name}`" for name in [*_POSITION, "model_id"])
        # Constants let Delta skip the files of other positions.
        ranges = _within(chunk.ranges, of="t.")
        if self._kind == "replay":
            pairs = ", ".join(f"`{name}` = s.`{name}`" for name in _COLUMNS)
            action = f"WHEN MATCHED THEN UPDATE SET {pairs}"
        else:
            names = ", ".join(f"`{name}`" for name in _COLUMNS)
            values = ", ".join(f"s.`{name}`" for name in _COLUMNS)
            action = f"WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({values})"  # noqa: S608
        condition = f"{identity} AND ({ranges})"
        return f"MERGE INTO {table} AS t USING {_OUTCOMES} AS s ON {condition} {action}"


@dataclass(frozen=True, slots=True)
class _Note:
    """When what is being done began: rows that are newer are done."""

    folder: Folder
    name: str
    began: datetime

    @classmethod
    def of(cls, folder: Folder, kind: Kind, model_id: str, selection: Selection) -> _Note:
        what = {"kind": kind, "model_id": model_id, "selection": asdict(selection)}
        text = json.dumps(what, default=str, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        name = f"{OWN_FOLDER}/{kind}-{digest}.json"
        now = datetime.now(UTC)
        if folder.create(name, json.dumps({**what, "began": now.isoformat()}, default=str)):
            return cls(folder, name, now)
        try:
            noted = json.loads(folder.read(name) or "")
            return cls(folder, name, datetime.fromisoformat(noted["began"]))
        except (ValueError, KeyError, TypeError) as error:
            raise SetupError(
                f"{folder.location}/{name}, which tells when the {kind} began, cannot be read "
                f"({error}); delete it to begin anew"
            ) from None

    def remove(self) -> None:
        self.folder.delete(self.name)


def _within(ranges: Sequence[OffsetRange], *, of: str = "") -> str:
    """The condition in SQL that a row, `of` a table's alias, lies in one of the ranges."""
    return " OR ".join(
        f"({of}topic = {literal(one.topic)} AND {of}partition = {one.partition} "
        f"AND {of}offset BETWEEN {one.first} AND {one.last})"
        for one in ranges
    )


def _obtainable(wanted: DataFrame) -> DataFrame:
    return wanted.where(f.col("in_kafka") | f.col("refers"))


def _refers() -> Column:
    """Whether the row's reference can be fetched: one that held a secret is kept without it."""
    return f.col("uri").isNotNull() & ~f.col("uri").contains(REDACTED)


def _chunks(counted: Sequence[tuple[OffsetRange, int]], chunk_rows: int) -> Iterator[Chunk]:
    ranges: list[OffsetRange] = []
    rows = 0
    for one, count in counted:
        if ranges and (rows + count > chunk_rows or len(ranges) == _SPANS_A_CHUNK):
            yield Chunk(tuple(ranges), rows)
            ranges, rows = [], 0
        ranges.append(one)
        rows += count
    if ranges:
        yield Chunk(tuple(ranges), rows)


def _layers(
    ranges: Sequence[OffsetRange], topics: Mapping[str, TopicState]
) -> list[list[OffsetRange]]:
    """What Kafka holds of the ranges, in lists of at most one for each partition."""
    by_partition: dict[tuple[str, int], list[OffsetRange]] = defaultdict(list)
    for one in ranges:
        state = topics.get(one.topic)
        if state is not None and one.last >= (first := state.earliest.get(one.partition, 2**63)):
            held = OffsetRange(one.topic, one.partition, max(one.first, first), one.last)
            by_partition[one.topic, one.partition].append(held)
    return [
        [one for one in layer if one is not None] for layer in zip_longest(*by_partition.values())
    ]


def _as_messages(rows: DataFrame) -> DataFrame:
    """The JSON messages of references whose rows are all that is left of them."""
    own = f.create_map(f.lit("id"), f.col("image_id"), f.lit("uri"), f.col("uri"))

    def taken(name: Column, _: Column) -> Column:
        return name.isin("id", "uri", "data")

    def header(entry: Column) -> Column:
        return f.struct(entry["key"].alias("key"), entry["value"].cast("binary").alias("value"))

    # An attribute of such a name can only have come from a header.
    fields = f.map_filter("attributes", lambda name, value: ~taken(name, value))
    headers = f.transform(f.map_entries(f.map_filter("attributes", taken)), header)
    return rows.select(
        *_POSITION,
        "timestamp",
        "key",
        f.to_json(f.map_concat(fields, own)).cast("binary").alias("value"),
        headers.alias("headers"),
    )


def _is_conflict(error: Exception) -> bool:
    return "DELTA_CONCURRENT" in str(error)
