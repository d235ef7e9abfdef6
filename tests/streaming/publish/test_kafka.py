"""A table published to a real topic."""

from __future__ import annotations

import threading
from pathlib import Path
from uuid import uuid4

import pytest

from embedstream.cli.actions.followers.publish import run_publish
from embedstream.config.sections import KafkaConfig, StreamConfig
from embedstream.config.sections.publishing import PublishConfig
from embedstream.kafka.client_settings import choose_target
from embedstream.kafka.dev_broker import Broker
from embedstream.publish.reports import Skipped
from embedstream.publish.runs import publish_once
from embedstream_core.errors import SetupError
from outcome_tables import MODEL
from published import KafkaTarget, check_published
from tables_in_motion import MovingTable


def test_a_topic_holds_the_table_and_takes_no_message_above_its_limit(
    broker: Broker, tmp_path: Path
) -> None:
    table = MovingTable.create(tmp_path / "table", rows=21, feed=True)
    name = f"outcomes-{uuid4().hex[:8]}"
    target = KafkaTarget.create(broker.bootstrap_servers, name, **{"max.message.bytes": "8000"})
    target.publish(table.path, client={"linger_ms": "5"})
    check_published(target, table.path)
    table.append(1, length=5000)
    table.replace([0, 6, 7])
    table.delete("offset = 3")
    [skipped] = [one for one in target.publish(table.path) if isinstance(one, Skipped)]

    assert (skipped.messages, skipped.keys) == (1, (f"images-0-21-{MODEL}",))
    table.delete("offset = 21")
    target.publish(table.path)
    check_published(target, table.path)


def test_the_command_says_what_it_published(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = MovingTable.create(tmp_path / "table", rows=7)
    target = KafkaTarget.create(broker.bootstrap_servers, f"outcomes-{uuid4().hex[:8]}")
    config = StreamConfig.model_validate(
        {
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "subscribe": "images"},
            "table": {"path": table.path},
            "checkpoint": str(tmp_path / "checkpoint"),
            "publish": {"topic": target.name, "rows": "embeddings"},
        }
    )
    run_publish(config, until="current")
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"nothing of the table is in topic '{target.name}' at ")
    assert second.startswith("a full pass publishes all rows of version 1: nothing of this table")
    assert third.startswith("the full pass over version 1 has ended: 6 messages in ")
    assert last == "published up to version 1, 0 behind the table: 6 messages, 0 removed"
    table.append(2)
    run_publish(config, until="current")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "published up to version 2, 0 behind the table: 2 messages, 0 removed"
    check_published(target, table.path, "embeddings")
    run_publish(config, until="current")
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was to be published"


def test_a_topic_that_does_not_exist_is_a_sentence(broker: Broker, tmp_path: Path) -> None:
    table = MovingTable.create(tmp_path / "table", rows=1)
    with pytest.raises(SetupError, match=r"no topic 'nowhere' at .*; create it first"):
        KafkaTarget("nowhere", broker.bootstrap_servers).publish(table.path)


def test_without_a_topic_there_is_nothing_to_publish_to(tmp_path: Path) -> None:
    kafka = KafkaConfig(bootstrap_servers="localhost:1", subscribe="images")
    with pytest.raises(SetupError, match=r"publish\.topic names no topic"):
        publish_once("table", kafka, PublishConfig(), report=print, stop=threading.Event())


def test_brokers_and_credentials_are_those_of_kafka_unless_others_are_named() -> None:
    kafka = KafkaConfig(
        bootstrap_servers="a:9092",
        subscribe="images",
        options={"kafka.security.protocol": "SSL"},
    )
    client = {"compression_type": "gzip", "linger_ms": "5", "enable_idempotence": "false"}
    given = {"compression_type": "gzip", "linger_ms": 5, "enable_idempotence": False}

    assert choose_target(kafka, PublishConfig(client=client)) == (
        "a:9092",
        {"security_protocol": "SSL", **given},
    )
    other = PublishConfig(bootstrap_servers="b:9092", client=client)
    assert choose_target(kafka, other) == ("b:9092", given)
    with pytest.raises(SetupError, match="linger_ms has to be a whole number, not 'soon'"):
        choose_target(kafka, PublishConfig(client={"linger_ms": "soon"}))
