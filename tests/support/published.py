"""Topics that a table is published to, and what they have to hold."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from embedstream.config.publishing import PublishConfig
from embedstream.config.sections import KafkaConfig
from embedstream.follow.table_reader import open_table, select_batches
from embedstream.publish.messages import Published
from embedstream.publish.publisher import Publisher
from embedstream.publish.reports import PublishReport
from embedstream.publish.runs import publish_once

__all__ = ["KafkaTarget", "MemoryTarget", "Target", "check_published", "newest_by_key"]


class Target(Protocol):
    """A topic, wherever it is."""

    def publish(self, table: str, *, again: bool = False, **keys: Any) -> list[PublishReport]:
        """Publish what is due; the keys are those of `publish`."""
        ...

    def read(self) -> list[Published]:
        """All messages, those of one key in their order."""
        ...


@dataclass
class MemoryTarget:
    """A topic in memory that takes messages of up to `max_bytes`."""

    name: str = "outcomes"
    max_bytes: int = 2**20
    flush_after: int = 10_000
    messages: list[Published] = field(default_factory=list)
    skipped: list[tuple[str, int]] = field(default_factory=list)
    sent: list[Published] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.sent) >= self.flush_after

    def send(self, message: Published) -> None:
        size = len(message.value or b"")
        if size > self.max_bytes:
            self.skipped.append((message.key, size))
        else:
            self.sent.append(message)

    def flush(self) -> None:
        self.messages += self.sent
        self.sent = []

    def publish(self, table: str, *, again: bool = False, **keys: Any) -> list[PublishReport]:
        reports: list[PublishReport] = []
        config = PublishConfig(topic=self.name, **keys)
        stop = threading.Event()
        publisher = Publisher(table, config, self, report=reports.append, stop=stop, again=again)
        while not publisher.is_current:
            publisher.step()
        return reports

    def read(self) -> list[Published]:
        return self.messages


@dataclass(frozen=True)
class KafkaTarget:
    """A topic of three partitions."""

    name: str
    bootstrap_servers: str

    @staticmethod
    def create(bootstrap_servers: str, name: str, **settings: str) -> KafkaTarget:
        with closing(KafkaAdminClient(bootstrap_servers=bootstrap_servers)) as admin:
            admin.create_topics(
                [NewTopic(name, 3, -1, topic_configs=settings)], wait_for_metadata=True
            )
        return KafkaTarget(name, bootstrap_servers)

    def publish(self, table: str, *, again: bool = False, **keys: Any) -> list[PublishReport]:
        reports: list[PublishReport] = []
        kafka = KafkaConfig(bootstrap_servers=self.bootstrap_servers, subscribe="images")
        config = PublishConfig(topic=self.name, **keys)
        stop = threading.Event()
        publish_once(table, kafka, config, report=reports.append, stop=stop, again=again)
        return reports

    def read(self) -> list[Published]:
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap_servers, group_id=None)
        with closing(consumer):
            places = [TopicPartition(self.name, number) for number in range(3)]
            consumer.assign(places)
            consumer.seek_to_beginning()
            ends = consumer.end_offsets(places)
            found = []
            while any(consumer.position(place) < ends[place] for place in places):
                for records in consumer.poll(timeout_ms=500).values():
                    found += records
        return [Published(one.key.decode(), one.value, tuple(one.headers)) for one in found]


def newest_by_key(messages: Iterable[Published]) -> dict[str, Published]:
    """Return what a consumer keeps that drops repeats by the headers, as docs/publish.md says."""
    newest: dict[str, tuple[str, int, Published]] = {}
    for message in messages:
        headers = dict(message.headers)
        table = headers["embedstream-table-id"].decode()
        version = int(headers["embedstream-table-version"])
        known = newest.get(message.key)
        if known is None or known[0] != table or known[1] < version:
            newest[message.key] = (table, version, message)
    return {key: message for key, (_, _, message) in newest.items()}


def check_published(
    target: Target, table: str, rows: str = "all", *, tombstones: Literal["all", "some"] = "all"
) -> None:
    """The newest messages are the rows of the table; the keys of all others have no value.

    With `some`, rows that are gone may lack their tombstone, as after a full pass.
    """
    expected = {
        "-".join(
            str(row[name] or "") if name == "model_id" else str(row[name])
            for name in ("topic", "partition", "offset", "model_id")
        ): row
        for batch in select_batches(open_table(table), "* FROM outcomes")
        for row in batch.to_pylist()
        if _is_published(row, rows)
    }
    newest = newest_by_key(target.read())
    found = {key: one for key, one in newest.items() if one.value is not None}
    if tombstones == "some":
        found = {key: one for key, one in found.items() if key in expected}
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        _check_message(found[key], row)
    for key in newest.keys() - expected.keys():
        if tombstones == "some" and newest[key].value is not None:
            continue
        assert dict(newest[key].headers)["embedstream-outcome"] == b"removed"


def _is_published(row: Mapping[str, Any], rows: str) -> bool:
    code = row["error"] and row["error"]["code"]
    if rows == "failures":
        return code not in (None, "deleted")
    return rows == "all" or code in (None, "deleted")


def _check_message(message: Published, row: Mapping[str, Any]) -> None:
    assert message.value is not None
    value = json.loads(message.value)
    vector = row["embedding"]
    if vector is None:
        assert value["embedding"] is None
    else:
        assert np.asarray(value["embedding"], np.float32).tolist() == vector
    for name in ("topic", "partition", "offset", "image_id", "uri", "error", "model_id"):
        assert value[name] == row[name], name
    for name in ("timestamp", "processed_at"):
        assert (value[name] and datetime.fromisoformat(value[name])) == row[name]
    assert (value["key"] and base64.b64decode(value["key"])) == row["key"]
    assert (value["media"] and value["media"]["type"]) == (row["media"] and row["media"]["type"])
    attributes = row["attributes"]
    assert value["attributes"] == (None if attributes is None else dict(attributes))
    headers = {name.removeprefix("embedstream-"): text for name, text in message.headers}
    assert headers["topic"].decode() == row["topic"]
    assert int(headers["partition"]) == row["partition"]
    assert int(headers["offset"]) == row["offset"]
    assert headers.get("model-id", b"").decode() == (row["model_id"] or "")
    code = row["error"] and row["error"]["code"]
    kind = "embedding" if code is None else "deletion" if code == "deleted" else "failure"
    assert headers["outcome"].decode() == kind
    assert headers.get("code", b"").decode() == (code or "")
