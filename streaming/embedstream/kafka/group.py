"""Commit the stream's offsets to a consumer group, for tools that watch Kafka's groups.

The stream never reads them: the checkpoint and the table's commits say what was read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from pyspark.sql import SparkSession

from embedstream.config.sections import KafkaConfig
from embedstream.kafka.topics import open_admin
from embedstream.logs.outages import OutageLog
from embedstream.spark.errors import find_root_cause, name_causes
from embedstream_core.errors import SetupError

__all__ = ["GroupCommitter", "check_group", "commit_offsets"]

_log = logging.getLogger(__name__)

_Offsets = Mapping[tuple[str, int], int]

_RETRY_S = 10.0
_CLOSE_S = 10.0


class GroupCommitter:
    """Commits offsets in a daemon thread, while it is open as a context manager.

    `put` never waits. Of offsets that come while others are committed only the last ones are
    committed, and the last ones of all before the block ends, which waits up to 10 s for that. A
    failure is logged once and tried again.
    """

    def __init__(self, commit: Callable[[_Offsets], object]) -> None:
        """Start nothing yet; `commit` is called on the thread and may raise."""
        self._commit = commit
        self._due: _Offsets | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._outage = OutageLog(_log, "the consumer group's offsets are not committed")
        self._thread = threading.Thread(target=self._run, name="group", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)

    def put(self, offsets: _Offsets) -> None:
        """Have the offsets committed soon: for each topic and partition that of the next message.

        Offsets of another partition that are not committed yet stay due.
        """
        with self._changed:
            self._due = {**(self._due or {}), **offsets}
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._is_closed)
                due, self._due = self._due, None
            if not due:
                return
            try:
                self._commit(due)
            except Exception as error:
                # A session that ends raises errors of many types.
                self._outage.begin(error)
                with self._changed:
                    self._due = {**due, **(self._due or {})}
                    if self._is_closed:
                        return
                    self._changed.wait_for(lambda: self._is_closed, timeout=_RETRY_S)
            else:
                self._outage.end()


def commit_offsets(spark: SparkSession, config: KafkaConfig, group: str, offsets: _Offsets) -> None:
    """Write offsets to a consumer group; it is created if there is none.

    Raises:
        SetupError: no broker answers, the group has active members, or Kafka's access rules refuse
            it.
    """
    jvm: Any = spark.sparkContext._jvm
    kafka = jvm.org.apache.kafka
    # Each attribute of a Java package is a request to the JVM.
    build_position, build_offset = (
        kafka.common.TopicPartition,
        kafka.clients.consumer.OffsetAndMetadata,
    )
    wanted = jvm.java.util.HashMap()
    for position, offset in offsets.items():
        wanted.put(build_position(*position), build_offset(offset))
    with open_admin(spark, config) as admin:
        try:
            admin.alterConsumerGroupOffsets(group, wanted).all().get()
        except Exception as error:
            raise _explain(group, error) from None


def check_group(spark: SparkSession, config: KafkaConfig, group: str) -> None:
    """Check that no consumer uses the group.

    Raises:
        SetupError: no broker answers, the group has active members, or Kafka's access rules refuse
            it.
    """
    jvm: Any = spark.sparkContext._jvm
    with open_admin(spark, config) as admin:
        try:
            groups = admin.describeConsumerGroups(jvm.java.util.List.of(group)).all().get()
        except Exception as error:
            if "GroupIdNotFoundException" in name_causes(error):
                return
            raise _explain(group, error) from None
        members = sorted({member.clientId() for member in groups[group].members()})
    if members:
        raise SetupError(_describe_members(group, f" ({', '.join(members)})"))


def _explain(group: str, error: Exception) -> Exception:
    """Return an error about the group as a sentence; any other one unchanged."""
    kinds = name_causes(error)
    if kinds & {"UnknownMemberIdException", "RebalanceInProgressException"}:
        return SetupError(_describe_members(group, ""))
    if kinds & {"GroupAuthorizationException", "TopicAuthorizationException"}:
        return SetupError(
            f"Kafka refuses the consumer group '{group}' ({find_root_cause(error)}); allow READ on "
            "the group and the topics and DESCRIBE on the group, or remove kafka.commit_group"
        )
    return error


def _describe_members(group: str, names: str) -> str:
    return (
        f"the consumer group '{group}' has active members{names}, so its offsets are theirs; set "
        "kafka.commit_group to a group that no consumer uses"
    )
