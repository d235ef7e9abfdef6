"""Every metric of a stream, declared once.

`exposition` serves them, docs/metrics.md is generated from them, and the dashboard and the alert
rules in deploy/monitoring name no others. Imports nothing: the declarations are read without the
extra `monitor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "APPEND_TO_COMMIT",
    "BUILD",
    "CACHE_HITS",
    "INDEX_TROUBLE",
    "INDEX_VERSION",
    "LAG_MESSAGES",
    "LAG_SECONDS",
    "LAST_COMMIT",
    "METRICS",
    "MICRO_BATCHES",
    "MICRO_BATCH_DURATION",
    "MODEL",
    "MODEL_LOADS",
    "NULL_VALUES",
    "OTHER",
    "PUBLISHED_VERSION",
    "PUBLISH_TROUBLE",
    "READY",
    "RETENTION_MARGIN",
    "ROWS",
    "STAGE_SECONDS",
    "STATE",
    "TABLE_VERSION",
    "Kind",
    "Metric",
]

Kind = Literal["counter", "gauge", "histogram", "info"]

OTHER: Final = "other"
"""The label value of all that is beyond a label's limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric: its name as Prometheus has it, its unit, its labels, and what it says.

    `buckets` are the upper bounds of a histogram, and `bucket_reason` says why these.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    bucket_reason: str = ""


ROWS = Metric(
    name="embedstream_rows_total",
    kind="counter",
    unit="rows",
    labels=("topic", "outcome", "code", "model_id"),
    help="Rows committed to the table since the start of the process. outcome is embedding, "
    "failure or deletion; code is the error code of a failure, deleted for a deletion, and empty "
    "for an embedding; model_id is empty where no model was reached.",
)
NULL_VALUES = Metric(
    name="embedstream_null_values_total",
    kind="counter",
    unit="messages",
    help="Messages without a value that were only counted, as message.tombstones says.",
)
MICRO_BATCHES = Metric(
    name="embedstream_micro_batches_total",
    kind="counter",
    unit="micro-batches",
    help="Micro-batches with messages that were committed since the start of the process.",
)
MICRO_BATCH_DURATION = Metric(
    name="embedstream_micro_batch_duration_seconds",
    kind="histogram",
    unit="seconds",
    help="Duration of a micro-batch, from its trigger to its commit.",
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
    bucket_reason="a Delta commit alone takes about half a second, and a stop waits 300 s for the "
    "micro-batch in flight by default",
)
APPEND_TO_COMMIT = Metric(
    name="embedstream_append_to_commit_seconds",
    kind="histogram",
    unit="seconds",
    help="Time from the append of a message to Kafka to the commit of its row.",
    buckets=(0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 14400, 86400),
    bucket_reason="narrow where a stream that keeps up lies, a few seconds, and up to a day for "
    "one that works off a backlog",
)
STAGE_SECONDS = Metric(
    name="embedstream_stage_seconds_total",
    kind="counter",
    unit="seconds",
    labels=("stage",),
    help="Seconds that the threads of all workers spent in a stage: fetch, decode, forward, write; "
    "wait is the time in which the forward pass had to wait for messages or decoded items.",
)
CACHE_HITS = Metric(
    name="embedstream_cache_hits_total",
    kind="counter",
    unit="embeddings",
    help="Embeddings that were taken over from equal content instead of being computed.",
)
LAG_MESSAGES = Metric(
    name="embedstream_lag_messages",
    kind="gauge",
    unit="messages",
    labels=("topic", "partition"),
    help="Messages of a partition that are not committed to the table yet.",
)
LAG_SECONDS = Metric(
    name="embedstream_lag_seconds",
    kind="gauge",
    unit="seconds",
    help="Time since the oldest message that is not committed yet was appended; 0 if all are.",
)
RETENTION_MARGIN = Metric(
    name="embedstream_retention_margin_messages",
    kind="gauge",
    unit="messages",
    labels=("topic", "partition"),
    help="Committed messages that Kafka's retention can delete before it reaches one that is not. "
    "It matters where embedstream_lag_messages is above 0.",
)
LAST_COMMIT = Metric(
    name="embedstream_last_commit_timestamp_seconds",
    kind="gauge",
    unit="seconds since 1970",
    help="Time of the last commit of a micro-batch; before the first one since the start, time of "
    "the table's last commit.",
)
TABLE_VERSION = Metric(
    name="embedstream_table_version",
    kind="gauge",
    unit="version",
    help="The table's newest version.",
)
INDEX_VERSION = Metric(
    name="embedstream_index_version",
    kind="gauge",
    unit="version",
    help="The version of the table that the index holds; -1 before its first pass has ended; "
    "absent without an index.",
)
INDEX_TROUBLE = Metric(
    name="embedstream_index_trouble",
    kind="gauge",
    help="1 while the index cannot follow the table, else 0; absent without an index.",
)
PUBLISHED_VERSION = Metric(
    name="embedstream_published_version",
    kind="gauge",
    unit="version",
    help="The version of the table that is in publish.topic; -1 before the first pass has ended; "
    "absent without publish.topic.",
)
PUBLISH_TROUBLE = Metric(
    name="embedstream_publish_trouble",
    kind="gauge",
    help="1 while the outcomes cannot be published, else 0; absent without publish.topic.",
)
MODEL_LOADS = Metric(
    name="embedstream_model_loads_total",
    kind="counter",
    unit="loads",
    help="How often a worker loaded a model since the start of the process.",
)
MODEL = Metric(
    name="embedstream_model_info",
    kind="info",
    labels=("model_id", "name", "precision", "dimension"),
    help="The models that fill the table, 1 for each.",
)
STATE = Metric(
    name="embedstream_state",
    kind="gauge",
    labels=("state",),
    help="1 for the state of the stream, 0 for the others: starting, running, stopping, stopped, "
    "failed; unwatched for `embedstream page`, which runs no stream.",
)
READY = Metric(
    name="embedstream_ready",
    kind="gauge",
    help="1 while the query runs and the claim is held, as /readyz says, else 0.",
)
BUILD = Metric(
    name="embedstream_build_info",
    kind="info",
    labels=("version",),
    help="The version of embedstream.",
)

METRICS: Final[tuple[Metric, ...]] = (
    ROWS,
    NULL_VALUES,
    MICRO_BATCHES,
    MICRO_BATCH_DURATION,
    APPEND_TO_COMMIT,
    STAGE_SECONDS,
    CACHE_HITS,
    LAG_MESSAGES,
    LAG_SECONDS,
    RETENTION_MARGIN,
    LAST_COMMIT,
    TABLE_VERSION,
    INDEX_VERSION,
    INDEX_TROUBLE,
    PUBLISHED_VERSION,
    PUBLISH_TROUBLE,
    MODEL_LOADS,
    MODEL,
    STATE,
    READY,
    BUILD,
)
"""All of them, in the order of the reference."""
