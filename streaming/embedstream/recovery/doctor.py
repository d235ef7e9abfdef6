"""What is wrong with a checkpoint and its table: the file, what it means, and the mend.

Nothing is written and no stream is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.topics import check_topics
from embedstream.recovery.checkpoint import Checkpoint, Unparsable
from embedstream.recovery.claim import check_unclaimed
from embedstream.recovery.lost_messages import check_ends, lost_ranges, skipped_batches, with_added
from embedstream.recovery.topic_ids import check_ids
from embedstream.spark.folder import Folder
from embedstream.table.delta_log import LogProblem, Writer, log_problems, writers
from embedstream_core.errors import SetupError

__all__ = ["Finding", "checkpoint_problems", "diagnose", "last_in_table", "table_problems"]

Writers = Mapping[str, Writer]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: `detail` says what is there, or what is wrong and what to do."""

    subject: str
    passed: bool
    detail: str


def diagnose(spark: SparkSession, config: StreamConfig) -> Iterator[Finding]:
    """Every problem of the table's log, the checkpoint, and the topics, each a finding."""
    table = Folder(spark, config.table.path)
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    in_log = table_problems(table, thorough=True)
    known = None if in_log else writers(spark, config.table.path)
    yield from _findings("table", in_log, f"{table.location}: the log is whole")
    yield from _findings(
        "checkpoint",
        _all_of_checkpoint(checkpoint, known, table.location),
        f"{config.checkpoint}: {len(checkpoint.committed)} micro-batches done",
    )
    yield _finding("topics", lambda: _topics(spark, config, checkpoint, known))
    yield _finding("driver", lambda: check_unclaimed(spark, config))


def _all_of_checkpoint(checkpoint: Checkpoint, known: Writers | None, table: str) -> list[str]:
    try:
        found = checkpoint_problems(checkpoint, known, table=table, thorough=True)
    except SetupError as error:
        return [str(error)]
    return found or _absent(checkpoint, known)


def _absent(checkpoint: Checkpoint, known: Writers | None) -> list[str]:
    if checkpoint.planned or not known:
        return []
    return [
        f"there is no checkpoint at '{checkpoint.folder.location}', and the query "
        f"{', '.join(known)} wrote to the table: its messages would be read again; bring the "
        "checkpoint back, or start with `embedstream run --adopt`, which goes on after the table's "
        "last messages"
    ]


def _findings(subject: str, problems: list[str], otherwise: str) -> Iterator[Finding]:
    for problem in problems:
        yield Finding(subject, passed=False, detail=problem)
    if not problems:
        yield Finding(subject, passed=True, detail=otherwise)


def _finding(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, passed=True, detail=check())
    except SetupError as error:
        return Finding(subject, passed=False, detail=str(error))


def _topics(
    spark: SparkSession, config: StreamConfig, checkpoint: Checkpoint, known: Writers | None
) -> str:
    topics = check_topics(spark, config.kafka)
    for folder in (checkpoint.folder, Folder(spark, config.table.path)):
        check_ids(folder, topics)
    try:
        due = checkpoint.next_offsets(in_table=last_in_table(checkpoint, known or {})) or {}
    except Unparsable:
        return f"{', '.join(topics)}: what was read of them cannot be told, see checkpoint"
    check_ends(due, topics)
    if lost := lost_ranges(with_added(due, topics), topics):
        told = "; ".join(map(str, lost))
        raise SetupError(
            f"Kafka deleted messages before they were read: {told}; `embedstream run "
            "--accept-loss` notes them and goes on after them"
        )
    return f"{', '.join(topics)}: as they were read, nothing lost"


def table_problems(table: Folder, *, thorough: bool) -> list[str]:
    """What is wrong in the table's log; not `thorough`, only what keeps it from being opened."""
    return [
        f"{problem.file} {problem.reason}: Delta cannot {_cannot(problem)}"
        for problem in log_problems(table, thorough=thorough)
    ]


def _cannot(problem: LogProblem) -> str:
    if problem.is_last and not problem.is_missing:
        return (
            "open the table; it is the last entry, so its writer was cut off: move it and its "
            f".crc files ({problem.version:020}.crc, .{problem.version:020}.json.crc) away, then "
            "ask `embedstream doctor` again whether the checkpoint is ahead of the table"
        )
    return (
        "tell which files make the table after it; bring it back from a copy, or start anew with "
        "another table and checkpoint"
    )


def checkpoint_problems(
    checkpoint: Checkpoint, known: Writers | None, *, table: str, thorough: bool
) -> list[str]:
    """What is wrong in a checkpoint's files, and between it and its table.

    `known` are the table's writers, None where its log cannot be read. Not `thorough`, only the
    files are read that Spark reads at a start.
    """
    if not checkpoint.planned and not checkpoint.committed:
        return []
    in_table = None if known is None else last_in_table(checkpoint, known)
    mend = _Mend(checkpoint, in_table)
    problems = [
        *_metadata(checkpoint, known),
        *_planned(checkpoint, mend, thorough=thorough),
        *_committed(checkpoint, mend, thorough=thorough),
    ]
    # A broken file may be why they disagree: what it says is not known.
    return problems if problems or known is None else _against_table(checkpoint, known, table)


def last_in_table(checkpoint: Checkpoint, known: Writers) -> int:
    """The last micro-batch of the checkpoint's query that the table has; -1 for none."""
    try:
        query = checkpoint.query_id()
    except Unparsable:
        return -1
    return known[query].batch if query is not None and query in known else -1


_START_OVER = (
    "move the checkpoint away and start with `embedstream run --adopt`, which goes on after the "
    "table's last messages"
)


@dataclass(frozen=True, slots=True)
class _Mend:
    """What to do about a file of the checkpoint."""

    checkpoint: Checkpoint
    in_table: int | None

    def of_planned(self, batch: int) -> str:
        last = self.checkpoint.last_planned
        if batch < last - 1:
            return (
                "Spark reads only the last two, so nothing is lost: delete all files up to "
                f"{batch} from offsets and commits"
            )
        undone = batch == last and batch not in self.checkpoint.committed
        if undone and self.in_table is not None and self.in_table < batch:
            return (
                f"Spark cannot start; the table does not have micro-batch {batch}, so delete the "
                f"file and .{batch}.crc beside it: it is planned again"
            )
        return f"Spark cannot tell what comes next; {_START_OVER}"

    def of_committed(self, batch: int) -> str:
        if self.in_table is not None and batch <= self.in_table:
            return (
                f"Spark cannot start; the table has micro-batch {batch}, so delete the file and "
                f".{batch}.crc beside it: Spark repeats it and the table skips it"
            )
        return f"Spark cannot start; {_START_OVER}"


def _metadata(checkpoint: Checkpoint, known: Writers | None) -> Iterator[str]:
    try:
        if checkpoint.query_id() is not None:
            return
        reason = "is missing"
    except Unparsable as error:
        reason = str(error)
    mend = _START_OVER
    if known and len(known) == 1:
        line = f'{{"id":"{next(iter(known))}"}}'
        mend = f"delete .metadata.crc and write into it the table's only writer: {line}"
    yield (
        f"metadata {reason}: the table would not know the query again, and a repeated micro-batch "
        f"would be doubled; {mend}"
    )


def _planned(checkpoint: Checkpoint, mend: _Mend, *, thorough: bool) -> Iterator[str]:
    planned, last = checkpoint.planned, checkpoint.last_planned
    first = min(planned, default=0) if thorough else max(min(planned, default=0), last - 1)
    for batch in range(first, last + 1):
        try:
            checkpoint.ends(batch)
        except Unparsable as error:
            yield f"offsets/{batch} {error}: {mend.of_planned(batch)}"


def _committed(checkpoint: Checkpoint, mend: _Mend, *, thorough: bool) -> Iterator[str]:
    last = max(checkpoint.committed, default=-1)
    for batch in sorted(checkpoint.committed):
        if batch > checkpoint.last_planned:
            yield (
                f"commits/{batch} has no offsets/{batch}: Spark would plan micro-batch {batch} "
                f"again with other messages, and the table skip them; {_START_OVER}"
            )
        elif thorough or batch == last:
            try:
                checkpoint.check_commit(batch)
            except Unparsable as error:
                yield f"commits/{batch} {error}: {mend.of_committed(batch)}"


def _against_table(checkpoint: Checkpoint, known: Writers, table: str) -> list[str]:
    query = checkpoint.query_id()
    done = max(checkpoint.committed.keys() - skipped_batches(checkpoint), default=-1)
    if query is None or query not in known:
        if done < 0:
            return []
        return [
            f"metadata names the query {query}, which never wrote to the table '{table}': the "
            "checkpoint belongs to another table, or the table was replaced; correct table.path or "
            f"checkpoint, or {_START_OVER}"
        ]
    own = known[query]
    newest = max(known, key=lambda one: known[one].updated_ms)
    if newest != query:
        return [
            f"metadata names the query {query}, but the query {newest} wrote to the table after "
            "it: rows would be doubled; use that query's checkpoint, or " + _START_OVER
        ]
    if own.batch < done:
        return [
            f"commits/{done} says that micro-batch {done} is done, but the last one in the table "
            f"'{table}' is {own.batch}: the rows of those between are missing; {_START_OVER}"
        ]
    if own.batch > checkpoint.last_planned:
        return [
            f"offsets ends with micro-batch {checkpoint.last_planned}, but the table '{table}' has "
            f"{own.batch}: the checkpoint is an older copy, and the table would skip what Spark "
            f"plans anew; {_START_OVER}"
        ]
    return []
