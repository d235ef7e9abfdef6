"""The flow from the topics to the table, as the page draws it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from embedstream.monitor.status import PartitionStatus, Status
from embedstream_core.pipeline.work_record import WorkStage

__all__ = ["StageView", "TopicView", "list_stages", "list_topics"]

# Below this, in seconds of work per second, no stage holds the others up.
_BUSY = 0.05

_WORK: tuple[tuple[WorkStage, str], ...] = (
    ("fetch", "reads referenced content"),
    ("decode", "makes model input"),
    ("forward", "computes vectors"),
    ("write", "commits rows"),
)


@dataclass(frozen=True, slots=True)
class TopicView:
    """A topic with its unread messages, and the least margin of its partitions with any."""

    name: str
    partitions: tuple[PartitionStatus, ...]
    lag: int | None
    margin: int | None


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage: seconds of work per second, and that as a share of the busiest stage's, 0 to 100."""

    name: WorkStage
    purpose: str
    seconds: float
    share: int
    is_busiest: bool


def list_topics(status: Status) -> list[TopicView]:
    """Return the topics by name."""
    ordered = sorted(status.partitions, key=lambda one: (one.topic, one.partition))
    topics = []
    for name, found in groupby(ordered, key=lambda one: one.topic):
        partitions = tuple(found)
        part = status.model_copy(update={"partitions": partitions})
        topics.append(TopicView(name, partitions, part.lag, part.margin))
    return topics


def list_stages(status: Status) -> list[StageView]:
    """Return the stages in the order of the work."""
    seconds = {stage: status.stage_seconds.get(stage, 0.0) for stage, _ in _WORK}
    most = max(seconds.values())
    return [
        StageView(
            stage,
            purpose,
            seconds[stage],
            round(100 * seconds[stage] / most) if most else 0,
            is_busiest=seconds[stage] == most and most >= _BUSY,
        )
        for stage, purpose in _WORK
    ]
