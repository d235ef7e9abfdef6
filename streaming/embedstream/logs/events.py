"""The events of the log: a closed set of names, each with its fields."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Any

__all__ = ["DESCRIPTIONS", "OWN_LOGGERS", "Description", "Event", "log_event"]

OWN_LOGGERS = ("embedstream", "embedstream_core")
"""The loggers above all others of this project."""


@unique
class Event(StrEnum):
    """What a log record reports; the value is its `event`."""

    START = "start"
    MICRO_BATCH = "micro_batch"
    CHUNK = "chunk"
    STOPPING = "stopping"
    STOP = "stop"
    FAILURE = "failure"
    FINDING = "finding"
    LINE = "line"
    RESTART = "restart"
    SWAP = "swap"
    COMPACTION = "compaction"
    CLAIM_TAKEN = "claim_taken"
    CLAIM_ENDED = "claim_ended"
    CLAIM_NOT_RENEWED = "claim_not_renewed"
    CLAIM_LOST = "claim_lost"
    LOST_MESSAGES = "lost_messages"
    INDEX_PROGRESS = "index_progress"
    INDEX_TROUBLE = "index_trouble"
    INDEX_RECOVERED = "index_recovered"
    INDEX_BEHIND = "index_behind"
    INDEX_OUTPUT = "index_output"
    PUBLISH_PROGRESS = "publish_progress"
    PUBLISH_SKIPPED = "publish_skipped"
    PUBLISH_TROUBLE = "publish_trouble"
    PUBLISH_RECOVERED = "publish_recovered"
    PUBLISH_BEHIND = "publish_behind"
    PUBLISH_OUTPUT = "publish_output"


@dataclass(frozen=True, slots=True)
class Description:
    """What an event means, and its fields.

    `is_printed`: the text format prints its message on the standard output, and nothing else.
    """

    meaning: str
    fields: tuple[str, ...] = ()
    is_printed: bool = False


_COUNTS = ("rows", "embeddings", "failures", "deleted")

DESCRIPTIONS: Mapping[Event, Description] = {
    Event.START: Description(
        "The checks have passed, and the query starts. `models` are the model_ids, `topics` the "
        "names of the topics.",
        ("version", "models", "table", "checkpoint", "topics"),
        is_printed=True,
    ),
    Event.MICRO_BATCH: Description(
        "A micro-batch is in the table. `failures` are counted by code. `lag` is the number of "
        "messages still to be read in the partition that is furthest behind, `margin` the number "
        "of read messages that retention can delete before an unread one. `null_values` are "
        "messages without a value and without a row.",
        (
            "batch_id",
            "messages",
            *_COUNTS,
            "null_values",
            "cache_hits",
            "duration_s",
            "stage_seconds",
            "lag",
            "margin",
        ),
        is_printed=True,
    ),
    Event.CHUNK: Description(
        "A chunk of a replay, a backfill or a batch is in the table, the `number`th of `of`.",
        (*_COUNTS, "number", "of", "duration_s", "left_s"),
        is_printed=True,
    ),
    Event.STOPPING: Description(
        "A signal stops the stream: the micro-batch in flight is finished, or after "
        "`trigger.stop_timeout_s` interrupted.",
        ("timeout_s", "interrupted"),
        is_printed=True,
    ),
    Event.STOP: Description(
        "The stream has ended, by a signal or because it is drained. The counts are its totals.",
        ("micro_batches", *_COUNTS, "null_values", "busy_s", "model_loads", "table"),
        is_printed=True,
    ),
    Event.FAILURE: Description(
        "An error ended the command. `kind` is its type; one that is not expected comes with its "
        "traceback. With the field `process` it was only that process: `index` or `publish`.",
        ("kind",),
    ),
    Event.FINDING: Description(
        "The result of a check before the start, or of `embedstream doctor`.",
        ("subject", "detail", "passed"),
        is_printed=True,
    ),
    Event.LINE: Description("Another line that a command prints.", is_printed=True),
    Event.RESTART: Description(
        "The query starts again in the running driver, because the table was altered while a "
        "micro-batch was written; `reason` is `table_altered`. With `stopping` the next start of "
        "the stream does it.",
        ("reason", "stopping"),
        is_printed=True,
    ),
    Event.SWAP: Description(
        "A step of a swap of models. `phase` is `preparing`, `accepted`, `switched`, `done` or "
        "`failed`; a request that is refused before it is recorded has no `swap_id`.",
        ("swap_id", "phase"),
        is_printed=True,
    ),
    Event.COMPACTION: Description(
        "The table's small files were merged.",
        ("table", "duration_s", "files_removed", "files_added"),
    ),
    Event.CLAIM_TAKEN: Description(
        "This driver holds the table, and a stream's its checkpoint too. `claim_id` names the "
        "claim.",
        ("claim_id", "table", "checkpoint"),
    ),
    Event.CLAIM_ENDED: Description(
        "The claim of a driver that has ended was found and is taken over. `holder` names that "
        "driver.",
        ("claim_id", "holder"),
    ),
    Event.CLAIM_NOT_RENEWED: Description(
        "The claim could not be renewed; the driver retries.", ("claim_id", "table")
    ),
    Event.CLAIM_LOST: Description(
        "Another driver has taken over, or the claim could not be renewed for too long: this "
        "driver stops.",
        ("claim_id", "table"),
    ),
    Event.LOST_MESSAGES: Description(
        "Kafka deleted messages before they were read, and the stream skips them.",
        ("topic", "partition", "first", "last"),
        is_printed=True,
    ),
    Event.INDEX_PROGRESS: Description(
        "A full pass or an approximate index begins or ends, or the index is at the table's last "
        "version. `version` is the version of the table that the index holds, `report` what the "
        "index process reported.",
        ("version", "report"),
        is_printed=True,
    ),
    Event.INDEX_TROUBLE: Description(
        "The index cannot follow the table; it retries, and the stream continues.",
        ("version",),
        is_printed=True,
    ),
    Event.INDEX_RECOVERED: Description(
        "After trouble the index follows the table again.", ("version",), is_printed=True
    ),
    Event.INDEX_BEHIND: Description(
        "The index has been behind the table for a while.",
        ("version", "table_version"),
        is_printed=True,
    ),
    Event.INDEX_OUTPUT: Description(
        "A line that the index process or its libraries printed.", is_printed=True
    ),
    Event.PUBLISH_PROGRESS: Description(
        "A pass over the whole table begins or ends, or the table's last version is in "
        "`publish.topic`. `version` is the version of the table that is published, `report` what "
        "the publishing process reported.",
        ("version", "report"),
        is_printed=True,
    ),
    Event.PUBLISH_SKIPPED: Description(
        "Kafka takes no message as large as those of some outcomes: they are not published. "
        "`report` has their number and the keys of the first ones.",
        ("version", "report"),
        is_printed=True,
    ),
    Event.PUBLISH_TROUBLE: Description(
        "The outcomes cannot be published now; it is tried again, and the stream continues.",
        ("version",),
        is_printed=True,
    ),
    Event.PUBLISH_RECOVERED: Description(
        "After trouble the outcomes are published again.", ("version",), is_printed=True
    ),
    Event.PUBLISH_BEHIND: Description(
        "The published version has been behind the table for a while.",
        ("version", "table_version"),
        is_printed=True,
    ),
    Event.PUBLISH_OUTPUT: Description(
        "A line that the publishing process or its libraries printed.", is_printed=True
    ),
}


def log_event(
    logger: logging.Logger,
    event: Event,
    text: str,
    *,
    level: int = logging.INFO,
    exc_info: BaseException | bool | None = None,
    **fields: Any,
) -> None:
    """Log an event: `text` for people, and the fields that `DESCRIPTIONS` lists for programs."""
    extra = {"event": event, "fields": fields}
    logger.log(level, "%s", text, exc_info=exc_info, extra=extra, stacklevel=2)
