"""Watch a running stream: its micro-batches, its topics, its consumer group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.kafka.group import GroupCommitter, commit_offsets
from embedstream.kafka.topic_watch import TopicWatch
from embedstream.kafka.topics import TopicState, check_topics
from embedstream.stream.guard import FailureGuard
from embedstream.stream.progress import ProgressListener
from embedstream.stream.reports import MicroBatchReport
from embedstream.worker.tally import Tallies

__all__ = ["StreamWatch", "watch_stream"]

# The listener gets the last micro-batch a moment after the query has ended.
_LISTENER_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class StreamWatch:
    """Where the reports of a stream arrive: `tallies` on the workers, `listener` on the driver.

    `guard` says whether the stream has to stop. `put_read` commits the offsets of the next messages
    to the consumer group, if there is one.
    """

    tallies: Tallies
    listener: ProgressListener
    guard: FailureGuard
    put_read: Callable[[Mapping[tuple[str, int], int]], object]

    def wait_for_last_report(self) -> None:
        """Wait until the end of the query is reported, and so all its micro-batches."""
        deadline = time.monotonic() + _LISTENER_TIMEOUT_S
        while not self.listener.ended and time.monotonic() < deadline:
            time.sleep(0.02)


@contextmanager
def watch_stream(
    spark: SparkSession,
    config: StreamConfig,
    *,
    replay: str,
    observers: Sequence[Callable[[MicroBatchReport], object]],
    on_read: Callable[[Mapping[tuple[str, int], int]], object] = lambda read: None,
    on_topics: Callable[[Mapping[str, TopicState]], object] = lambda topics: None,
    is_watched: Callable[[], bool] = lambda: False,
) -> Iterator[StreamWatch]:
    """Watch the queries of a session within the `with` block.

    Args:
        spark: The stream's session.
        config: The stream's configuration.
        replay: The command that embeds failures again, see `FailureGuard`.
        observers: Called with each committed micro-batch that had messages, in this order.
        on_read: Called with the offsets of the next messages after each micro-batch, also after one
            that had no messages: the markers of Kafka's transactions have offsets, too.
        on_topics: Called with what Kafka holds, each time that it was read.
        is_watched: Whether someone looks at the topics now; then they are read more often.
    """

    def put_read(read: Mapping[tuple[str, int], int]) -> None:
        if committer is not None:
            committer.put(read)

    def note_read(read: Mapping[tuple[str, int], int]) -> None:
        put_read(read)
        on_read(read)

    kafka = config.kafka
    tallies = Tallies.start(spark)
    guard = FailureGuard(config.guards, replay=replay)
    with ExitStack() as opened:
        committer = None
        if kafka.commit_group is not None:
            commit = partial(commit_offsets, spark, kafka, kafka.commit_group)
            committer = opened.enter_context(GroupCommitter(commit))
        topics = opened.enter_context(
            TopicWatch(lambda: check_topics(spark, kafka), on_read=on_topics, is_watched=is_watched)
        )
        listener = ProgressListener(
            [*observers, guard.add],
            tallies.take,
            get_topics=lambda: topics.latest,
            on_read=note_read,
        )
        spark.streams.addListener(listener)
        yield StreamWatch(tallies, listener, guard, put_read)
