"""docs/operations.md: its commands are run, and what the runbook quotes is what they print.

That the command line takes them is checked by test_recipes; the troubles themselves are in
tests/faults.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pyspark.sql import SparkSession

from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.config.sections.monitoring import GuardsConfig, LogConfig
from embedstream.kafka.admin import create_topic
from embedstream.recovery.claim import claim_stream
from embedstream.spark.local_disk import explain_disk_error
from embedstream.spark.session import JvmEnded
from embedstream.stream.guard import FailureGuard
from embedstream.stream.reports import MicroBatchReport
from kafka_topics import delete_before, delete_topic
from oracle import read_rows
from runbook import ALERTS, PAGE, Operator, find_block, list_commands, quotes
from small import send_pictures, tiny_picture, write_config
from streams import Topic, json_message

RULES = Path(__file__).parents[2] / "deploy" / "monitoring" / "rules.yaml"


REPORT = MicroBatchReport(
    embeddings=8,
    failures=Counter(),
    duration_s=1.0,
    batch_id=3,
    messages=8,
    tombstones=0,
    lag=0,
)


@pytest.fixture
def operator(
    spark: SparkSession,
    topic: Topic,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Operator:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    write_config(
        topic,
        tmp_path,
        table={"path": "data/table"},
        checkpoint="data/checkpoint",
        references={"folders": ["pictures"], "attempts": 1},
        kafka={"bootstrap_servers": topic.bootstrap_servers, "subscribe": topic.name},
    )
    return Operator(spark, topic, tmp_path, capsys)


def test_each_alert_has_its_entry() -> None:
    assert len(ALERTS) == 8
    for name, anchor, _ in ALERTS:
        heading = re.sub(r"(?<!^)([A-Z])", lambda found: f" {found[1].lower()}", name)
        assert f"\n### {heading}\n" in PAGE
        assert anchor == heading.lower().replace(" ", "-")


def test_each_alert_rule_is_listed_with_its_entry_and_severity() -> None:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    found = [
        (rule["alert"], rule["annotations"]["runbook_url"], rule["labels"]["severity"])
        for rule in rules
    ]

    listed = [(name, f"docs/operations.md#{at}", severity) for name, at, severity in ALERTS]
    assert sorted(found) == sorted(listed)


def test_the_runbook_has_eleven_entries() -> None:
    assert len(re.findall(r"^### ", PAGE, re.MULTILINE)) == 11


def test_the_line_of_a_micro_batch_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    with show_log(LogConfig()):
        console.print_micro_batch(replace(REPORT, lag=40, margin=14))

    assert quotes("Embedstream retention margin low", capsys.readouterr().out)


def test_the_verdict_of_the_guard_is_quoted() -> None:
    guard = FailureGuard(GuardsConfig(max_failure_ratio=0.5, window_rows=8), replay="replay")
    guard.add(replace(REPORT, embeddings=0, failures=Counter({"reference_not_found": 8})))

    assert quotes("Embedstream failure ratio high", f"embedstream: {guard.verdict}")


def test_the_errors_of_memory_and_disk_are_quoted(tmp_path: Path) -> None:
    full = explain_disk_error(OSError("No space left on device"), {"table.path": str(tmp_path)})

    assert quotes("Embedstream restarting", f"embedstream: {JvmEnded(-9)}")
    assert quotes("Disk full or read-only", f"embedstream: {full}")
    assert not quotes("Disk full or read-only", f"embedstream: {JvmEnded(-9)}")


@pytest.mark.spark
@pytest.mark.kafka
@pytest.mark.long
def test_a_backup_that_was_made_during_the_stream_is_restored(operator: Operator) -> None:
    operator.work(8)
    copy_log, hint, copy_rest = find_block("backup").partition("# A hint")

    operator.run(copy_log)
    operator.work(4)
    operator.run(f"{hint}{copy_rest}")
    operator.work(4)
    operator.run(find_block("restore"))

    operator.check()


@pytest.mark.spark
@pytest.mark.kafka
@pytest.mark.long
def test_a_stream_whose_driver_is_down(operator: Operator) -> None:
    """Nothing is wrong, then another driver runs."""
    operator.work(4)
    (look,) = list_commands("Embedstream down")
    (check,) = list_commands("Embedstream no commit")

    output = operator.run(look)
    for line in output.splitlines():
        assert quotes("Embedstream down", line), line
    assert len(output.splitlines()) == 4
    assert quotes("Embedstream no commit", operator.run(check))

    with claim_stream(operator.spark, operator.config):
        assert quotes("Embedstream not ready", operator.run(look))


@pytest.mark.spark
@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.parametrize("trouble", ["lost", "damaged", "older than the table"])
def test_a_checkpoint_in_trouble(operator: Operator, trouble: str) -> None:
    entry = "Checkpoint lost or damaged"
    operator.work(4)
    if trouble == "lost":
        shutil.rmtree(operator.checkpoint)
    elif trouble == "damaged":
        (operator.checkpoint / "commits" / "0").write_bytes(b"")
        (operator.checkpoint / "commits" / ".0.crc").unlink()
    else:
        shutil.copytree(operator.checkpoint, operator.folder / "older")
        operator.work(4)
        shutil.rmtree(operator.checkpoint)
        (operator.folder / "older").rename(operator.checkpoint)
    assert quotes(entry, operator.run("embedstream check stream.yaml"))
    (look, adopt) = list_commands(entry)

    assert "FAIL checkpoint" in operator.run(look)
    send_pictures(operator.topic, 4)
    operator.run(adopt)

    operator.check()


@pytest.mark.spark
@pytest.mark.kafka
@pytest.mark.long
def test_messages_are_lost_and_then_the_topic(operator: Operator) -> None:
    entry, look = "Messages lost", "embedstream check stream.yaml"
    operator.work(4)
    due = operator.topic.end_offsets()
    send_pictures(operator.topic, 8)
    delete_before(operator.topic, {number: offset + 2 for number, offset in due.items()})
    assert quotes(entry, operator.run(look))

    (accept,) = list_commands(entry)
    operator.run(accept)

    assert len(read_rows(operator.table)) == 4 + 8 - 2 * len(due)
    losses = operator.checkpoint / "_embedstream" / "losses.jsonl"
    assert len(losses.read_text().splitlines()) == len(due)

    delete_topic(operator.topic)
    create_topic(operator.topic.bootstrap_servers, operator.topic.name, partitions=2)

    assert quotes(entry, operator.run(look))


@pytest.mark.spark
@pytest.mark.kafka
@pytest.mark.long
def test_failures_are_embedded_again_and_what_follows_the_table_follows(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = operator.folder / "pictures" / "late.jpg"
    operator.topic.send([json_message("late", uri=picture.as_uri())])
    operator.work(4)
    picture.write_bytes(tiny_picture())

    (replay,) = list_commands("Embedstream failure ratio high")
    operator.run(replay)

    assert all(row["error"] is None for row in read_rows(operator.table).values())
    (index,) = list_commands("Embedstream index behind")
    assert quotes("Embedstream index behind", operator.run(index))

    published = f"{operator.topic.name}-published"
    create_topic(operator.topic.bootstrap_servers, published, partitions=1)
    monkeypatch.setenv("EMBEDSTREAM_PUBLISH__TOPIC", published)
    (publish,) = list_commands("Embedstream publish behind")
    assert quotes("Embedstream publish behind", operator.run(publish))
