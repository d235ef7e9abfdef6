"""The status of a stream at a time: `/api/status`, and what the page shows except rows."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field

from embedstream_core.pipeline.work_record import WorkStage

__all__ = [
    "STAGES",
    "IndexStatus",
    "ModelStatus",
    "PartitionStatus",
    "Percentiles",
    "Point",
    "PublishStatus",
    "State",
    "Status",
    "StatusSource",
    "TableStatus",
]

STAGES: tuple[WorkStage, ...] = get_args(WorkStage)

State = Literal["starting", "running", "stopping", "stopped", "failed", "unwatched"]
"""`unwatched`: the table is shown without a stream."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartitionStatus(_Frozen):
    """A partition: what was read and committed of it, and what Kafka holds.

    `read` is the offset of the next message to be read, `end` that of the next one to be appended,
    `earliest` the first that Kafka still holds. None: not known yet.
    """

    topic: str
    partition: int
    read: int | None = None
    end: int | None = None
    earliest: int | None = None
    lag: int | None = None
    """Messages that are not committed yet."""
    margin: int | None = None
    """Read messages that retention can delete before it reaches an unread one."""


class Percentiles(_Frozen):
    """Percentiles of seconds over the last hour."""

    p50: float
    p95: float
    p99: float


class Point(_Frozen):
    """A part of the last hour: from `at`, for `Status.point_s` seconds."""

    at: datetime
    embeddings: int = 0
    failures: int = 0
    lag: int | None = None
    """The messages that were not committed at its end, or at the last micro-batch in it."""


class ModelStatus(_Frozen):
    """A model that fills the table."""

    model_id: str
    name: str
    modalities: tuple[str, ...] = ()
    dimension: int | None = None
    precision: str | None = None
    loads: int | None = None
    """How often a worker loaded it since the start."""


class TableStatus(_Frozen):
    """The table. `last_commit` is the time of its newest version."""

    path: str
    version: int | None = None
    last_commit: datetime | None = None


class IndexStatus(_Frozen):
    """The index: the version of the table that it holds; None before its first pass has ended."""

    address: str
    version: int | None = None
    trouble: str = ""


class PublishStatus(_Frozen):
    """The topic of outcomes: the version of the table that is in it; None before the first pass."""

    address: str
    version: int | None = None
    trouble: str = ""


class Status(_Frozen):
    """A stream at the time `now`. Counts are since `started_at`, rates over the last minute."""

    state: State
    reason: str = ""
    """Why it is stopped or failed, or what holds it up, in a sentence."""
    now: datetime
    started_at: datetime | None = None
    version: str = ""
    """The version of embedstream."""
    models: tuple[ModelStatus, ...] = ()
    table: TableStatus
    index: IndexStatus | None = None
    publish: PublishStatus | None = None
    partitions: tuple[PartitionStatus, ...] = ()
    micro_batch: int | None = None
    """The id of the last committed micro-batch."""
    last_micro_batch: datetime | None = None
    """When it was committed."""
    embeddings: int = 0
    failures: dict[str, int] = Field(default_factory=dict)
    """Failures by error code."""
    deleted: int = 0
    cache_hits: int = 0
    rows_per_s: float = 0.0
    stage_seconds: dict[WorkStage, float] = Field(default_factory=dict)
    """Seconds of all threads in each stage, per second of the last minute."""
    lag_s: float | None = None
    """Seconds since the oldest unread message was appended; 0 if all are read."""
    append_to_commit: Percentiles | None = None
    point_s: int = 30
    history: tuple[Point, ...] = ()
    """The last hour, the oldest first, without gaps."""

    @property
    def lag(self) -> int | None:
        """The messages of all partitions that are not committed yet."""
        known = [one.lag for one in self.partitions if one.lag is not None]
        return sum(known) if known else None

    @property
    def margin(self) -> int | None:
        """The least margin of a partition with unread messages."""
        known = [one.margin for one in self.partitions if one.margin is not None and one.lag]
        return min(known, default=None)

    @property
    def index_behind(self) -> int | None:
        """The commits to the table that the index does not hold yet; None if that is not known."""
        return self._measure_behind(self.index)

    @property
    def publish_behind(self) -> int | None:
        """The commits to the table that are not published yet; None if that is not known."""
        return self._measure_behind(self.publish)

    def _measure_behind(self, follower: IndexStatus | PublishStatus | None) -> int | None:
        if follower is None or follower.version is None or self.table.version is None:
            return None
        return self.table.version - follower.version


class StatusSource(Protocol):
    """Gives the status: of a running stream, or of a table without one."""

    def read_status(self) -> Status:
        """Return what is known now; quick, and from any thread."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether the process does its work: for `/livez`."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the query runs and the claim is held: for `/readyz`."""
        ...
