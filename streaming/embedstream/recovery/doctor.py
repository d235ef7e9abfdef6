"""Find what is wrong with a checkpoint and its table: the file, what that means, and the remedy.

Nothing is written and no stream is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.topics import TopicState, check_topics
from embedstream.recovery.checkpoint import Checkpoint, DamagedFile, Writers
from embedstream.recovery.claim import check_unclaimed
from embedstream.recovery.lost_messages import (
    find_lost_ranges,
    read_due_offsets,
    read_skipped_batches,
    refuse_losses,
)
from embedstream.recovery.topic_ids import check_ids
from embedstream.spark.folder import Folder
from embedstream.table.delta_log import find_log_problems, read_writers
from embedstream_core.errors import SetupError

__all__ = ["Finding", "check_messages", "diagnose", "find_checkpoint_problems", "run_checks"]

_ADOPT = "start with `embedstream run --adopt`, which continues after the table's last messages"
_START_OVER = f"move the checkpoint away and {_ADOPT}"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: `detail` says what is there, or what is wrong and what to do."""

    subject: str
    passed: bool
    detail: str


def run_checks(checks: Mapping[str, Callable[[], str]]) -> Iterator[Finding]:
    """Run checks, which return a detail or raise SetupError; yield each finding at once."""
    for subject, check in checks.items():
        try:
            yield Finding(subject, True, check())
        except SetupError as error:
            yield Finding(subject, False, str(error))


def diagnose(spark: SparkSession, config: StreamConfig) -> Iterator[Finding]:
    """Check the table's log, the checkpoint, the topics and the driver."""
    table = Folder(spark, config.table.path)
    checkpoint = Checkpoint(Folder(spark, config.checkpoint))
    in_log = find_log_problems(table, thorough=True)
    writers = None if in_log else read_writers(spark, config.table.path)
    in_checkpoint = find_checkpoint_problems(
        checkpoint, writers, table=config.table.path, thorough=True
    )
    done = f"{config.checkpoint}: {len(checkpoint.committed)} micro-batches done"
    for subject, problems, detail in (
        ("table", in_log, f"{config.table.path}: the log is complete"),
        ("checkpoint", in_checkpoint, done),
    ):
        yield from (Finding(subject, False, problem) for problem in problems)
        if not problems:
            yield Finding(subject, True, detail)
    checks: Mapping[str, Callable[[], str]] = {
        "topics": lambda: check_messages(
            checkpoint, table, writers or {}, check_topics(spark, config.kafka)
        ),
        "driver": lambda: check_unclaimed(spark, config),
    }
    yield from run_checks(checks)


def check_messages(
    checkpoint: Checkpoint, table: Folder, writers: Writers, topics: Mapping[str, TopicState]
) -> str:
    """Check that the topics are those that were read, and still have what is read next.

    Raises:
        SetupError: A topic was created again or lost messages, or Kafka deleted unread messages.
    """
    for folder in (checkpoint.folder, table):
        check_ids(folder, topics)
    try:
        due = read_due_offsets(checkpoint, writers, topics)
    except DamagedFile:
        return f"{', '.join(topics)}: how far they were read is unknown, see checkpoint"
    refuse_losses(find_lost_ranges(due, topics))
    return f"{', '.join(topics)}: as they were read, nothing lost"


def find_checkpoint_problems(
    checkpoint: Checkpoint, writers: Writers | None, *, table: str, thorough: bool
) -> list[str]:
    """Return what is wrong in a checkpoint's files, and between it and its table.

    `writers` is None if the table's log cannot be read. Unless `thorough`, read only the files that
    Spark reads at a start, and accept that there is no checkpoint.
    """
    if not checkpoint.planned and not checkpoint.committed:
        if not thorough or not writers:
            return []
        return [
            f"there is no checkpoint at '{checkpoint.folder.location}', and the query "
            f"{', '.join(writers)} wrote to the table: its messages would be read again; restore "
            f"the checkpoint, or {_ADOPT}"
        ]
    in_table = None if writers is None else checkpoint.find_last_in_table(writers)
    problems = [
        *_find_in_offsets(checkpoint, in_table, thorough=thorough),
        *_find_in_commits(checkpoint, in_table, thorough=thorough),
    ]
    try:
        damage = "" if checkpoint.read_query_id() else "is missing"
    except DamagedFile as error:
        damage = str(error)
    if damage:
        remedy = _START_OVER
        if writers and len(writers) == 1:
            line = f'{{"id":"{next(iter(writers))}"}}'
            remedy = f"delete .metadata.crc and write into it the table's only writer: {line}"
        problems.append(
            f"metadata {damage}: the table would not recognize the query, and the rows of a "
            f"repeated micro-batch would be doubled; {remedy}"
        )
    # A damaged file may be the reason why checkpoint and table disagree.
    return problems or ([] if writers is None else _compare_with_table(checkpoint, writers, table))


def _find_in_offsets(
    checkpoint: Checkpoint, in_table: int | None, *, thorough: bool
) -> Iterator[str]:
    last = checkpoint.last_planned
    first = min(checkpoint.planned, default=0)
    for batch in range(first if thorough else max(first, last - 1), last + 1):
        try:
            checkpoint.read_ends(batch)
        except DamagedFile as error:
            is_done = batch < last or batch in checkpoint.committed
            if batch < last - 1:
                remedy = (
                    "Spark reads only the last two, so nothing is lost: delete all files up to "
                    f"{batch} from offsets and commits"
                )
            elif is_done or in_table is None or in_table >= batch:
                remedy = f"Spark cannot tell what comes next; {_START_OVER}"
            else:
                remedy = (
                    f"Spark cannot start; the table does not have micro-batch {batch}, so delete "
                    f"the file and .{batch}.crc next to it: Spark plans it again"
                )
            yield f"offsets/{batch} {error}: {remedy}"


def _find_in_commits(
    checkpoint: Checkpoint, in_table: int | None, *, thorough: bool
) -> Iterator[str]:
    for batch in sorted(checkpoint.committed):
        if batch > checkpoint.last_planned:
            yield (
                f"commits/{batch} has no offsets/{batch}: Spark would plan micro-batch {batch} "
                f"again with other messages, and the table would skip them; {_START_OVER}"
            )
        elif thorough or batch == max(checkpoint.committed):
            try:
                checkpoint.check_commit(batch)
            except DamagedFile as error:
                remedy = _START_OVER
                if in_table is not None and batch <= in_table:
                    remedy = (
                        f"the table has micro-batch {batch}, so delete the file and .{batch}.crc "
                        "next to it: Spark repeats it and the table skips it"
                    )
                yield f"commits/{batch} {error}: Spark cannot start; {remedy}"


def _compare_with_table(checkpoint: Checkpoint, writers: Writers, table: str) -> list[str]:
    query, last = checkpoint.read_query_id() or "", checkpoint.last_planned
    try:
        done = max(checkpoint.committed - read_skipped_batches(checkpoint), default=-1)
    except SetupError as error:
        return [str(error)]
    if query not in writers:
        disagreement = (
            f"metadata names the query {query}, which never wrote to the table '{table}': the "
            "checkpoint belongs to another table, or the table was replaced; correct table.path or "
            "checkpoint, or "
        )
        return [disagreement + _START_OVER] if done >= 0 else []
    in_table = writers[query].micro_batch
    newest = max(writers, key=lambda one: writers[one].updated_ms)
    if newest != query:
        disagreement = (
            f"metadata names the query {query}, but the query {newest} wrote to the table after "
            "it: rows would be doubled; use that query's checkpoint, or "
        )
    elif in_table < done:
        disagreement = (
            f"commits/{done} says that micro-batch {done} is done, but the last one in the table "
            f"'{table}' is {in_table}: the rows of those between are missing; "
        )
    elif in_table > last:
        disagreement = (
            f"offsets ends with micro-batch {last}, but the table '{table}' has {in_table}: the "
            "checkpoint is an older copy, and the table would skip what Spark plans next; "
        )
    else:
        return []
    return [disagreement + _START_OVER]
