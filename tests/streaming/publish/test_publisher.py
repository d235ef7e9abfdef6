"""What is published of each kind of commit, and how it begins, goes on and starts over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from embedstream.publish.reports import FullPassBegun, PublishReport, Sent, Skipped
from embedstream_core.errors import SetupError
from object_storage import KEYS, REGION, open_object_storage_process
from outcome_tables import MODEL, SCHEMA, row
from published import MemoryTarget, check_published, newest_by_key
from tables_in_motion import MovingTable

ROWS = ("all", "embeddings", "failures")


@pytest.fixture
def table(tmp_path: Path) -> MovingTable:
    return MovingTable.create(tmp_path / "ta ble é", rows=8)


@pytest.fixture
def target() -> MemoryTarget:
    return MemoryTarget()


def reasons(reports: list[PublishReport]) -> list[str]:
    """Why full passes were begun."""
    return [one.reason for one in reports if isinstance(one, FullPassBegun)]


def state_file(table: MovingTable, topic: str = "outcomes") -> Path:
    return Path(table.path) / f"_embedstream/publish-{topic}.json"


@pytest.mark.parametrize(
    ("feed", "partitions"), [(True, ()), (False, ("topic", "model_id")), (False, ())]
)
def test_every_kind_of_commit_is_published(
    tmp_path: Path, feed: bool, partitions: tuple[str, ...]
) -> None:
    table = MovingTable.create(tmp_path / "table", rows=8, feed=feed, partitions=partitions)
    targets = {rows: MemoryTarget(rows) for rows in ROWS}
    for rows, target in targets.items():
        [reason] = reasons(target.publish(table.path, rows=rows))
        assert reason == f"nothing of this table was published to '{rows}' before"
    changes: list[Callable[[], object]] = [
        lambda: table.append(7),
        lambda: table.append(3, operation="WRITE", model_id="other/model%2F é"),
        lambda: table.replace([0, 1, 6, 7]),
        lambda: table.fail([2, 3]),
        lambda: table.replace([2]),
        lambda: table.delete("offset in (3, 4, 8)"),
        table.compact,
        lambda: table.bury([0, 5]),
        lambda: table.replace([0, 5]),
        lambda: table.delete("error['code'] = 'deleted'"),
        table.alter,
        table.add_column,
        lambda: table.overwrite(5),
        lambda: table.restore(3),
    ]
    for change in changes:
        change()
        for rows, target in targets.items():
            assert reasons(target.publish(table.path, rows=rows)) == [], change
            check_published(target, table.path, rows)


def test_a_replayed_failure_leaves_the_dead_letter_topic(
    tmp_path: Path, target: MemoryTarget
) -> None:
    table = MovingTable.create(tmp_path / "table", rows=7, feed=True)
    target.publish(table.path, rows="failures")
    [failure] = target.messages
    assert failure.key == f"images-0-6-{MODEL}"
    assert failure.value is not None
    assert json.loads(failure.value)["error"]["code"] == "image_corrupt"
    table.replace([6])
    reports = target.publish(table.path, rows="failures")

    assert [(one.messages, one.removed) for one in reports if isinstance(one, Sent)] == [(0, 1)]
    assert target.messages[-1].key == failure.key
    assert target.messages[-1].value is None
    check_published(target, table.path, "failures")


def test_each_commit_of_a_stream_is_sent_once(table: MovingTable, target: MemoryTarget) -> None:
    target.publish(table.path)
    for _ in range(4):
        table.append(3)
    table.compact()
    reports = target.publish(table.path)

    assert [one.messages for one in reports if isinstance(one, Sent)] == [3, 3, 3, 3, 0]
    assert len(target.messages) == 20
    assert target.publish(table.path)[1:] == []


def test_a_vector_is_in_the_value_with_the_digits_of_its_floats(
    table: MovingTable, target: MemoryTarget
) -> None:
    target.publish(table.path)
    embedded = [one.value for one in target.messages if b"embedding" in dict(one.headers).values()]
    for value in embedded:
        assert value is not None
        assert b".0]" not in value
    first = json.loads(embedded[0] or b"")
    assert first["embedding"][1:] == [1, 1]
    assert first["media"]["type"] == "audio/wav"
    assert first["attributes"] == {"shop": "shop 0", "Größe": "klein"}


def test_latest_skips_what_is_there(table: MovingTable, target: MemoryTarget) -> None:
    assert target.publish(table.path, start="latest")[1:] == []
    table.append(2)
    target.publish(table.path, start="latest")
    assert sorted(newest_by_key(target.messages)) == [f"images-0-{one}-{MODEL}" for one in (8, 9)]


def test_a_lost_state_publishes_all_rows_again(table: MovingTable, target: MemoryTarget) -> None:
    target.publish(table.path)
    state_file(table).unlink()
    assert len(reasons(target.publish(table.path))) == 1
    assert reasons(target.publish(table.path, again=True)) == ["--again"]
    assert len(target.messages) == 3 * 8
    state_file(table).write_text("{")
    target.publish(table.path)
    check_published(target, table.path)


def test_other_rows_begin_as_start_says(table: MovingTable, target: MemoryTarget) -> None:
    target.publish(table.path, rows="failures")
    assert len(target.messages) == 1
    target.publish(table.path, rows="embeddings", start="latest")
    assert len(target.messages) == 1
    target.publish(table.path, rows="all", start="earliest")
    check_published(target, table.path)


def test_files_that_are_gone_lead_to_a_full_pass(table: MovingTable, target: MemoryTarget) -> None:
    target.publish(table.path)
    table.append(2)
    table.compact()
    table.vacuum()
    [reason] = reasons(target.publish(table.path))
    assert "is gone, as after VACUUM" in reason
    check_published(target, table.path)


def test_entries_that_are_gone_lead_to_a_full_pass(
    table: MovingTable, target: MemoryTarget
) -> None:
    target.publish(table.path)
    table.append(2)
    table.append(2)
    table.checkpoint()
    (Path(table.path) / f"_delta_log/{table.version() - 1:020}.json").unlink()
    [reason] = reasons(target.publish(table.path))
    assert reason.endswith("of the table's log is gone")
    check_published(target, table.path)


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_another_table_at_the_same_path_is_published_whole(
    table: MovingTable, target: MemoryTarget, start: str
) -> None:
    target.publish(table.path)
    state = state_file(table).read_bytes()
    MovingTable.replace_all(table, rows=8)
    state_file(table).parent.mkdir()
    state_file(table).write_bytes(state)
    assert len(reasons(target.publish(table.path, start=start))) == 1
    check_published(target, table.path)


def test_a_table_restored_from_a_copy_is_published_whole(
    table: MovingTable, target: MemoryTarget
) -> None:
    table.append(2)
    target.publish(table.path)
    log = Path(table.path) / "_delta_log"
    (log / f"{table.version():020}.json").unlink()
    table.append(3)
    table.append(1)
    [reason] = reasons(target.publish(table.path))
    assert "is not the one that was published" in reason


def test_a_file_that_is_missing_from_the_last_version_is_a_sentence(
    table: MovingTable, target: MemoryTarget
) -> None:
    next(Path(table.path).rglob("*.parquet")).unlink()
    for _ in range(2):
        with pytest.raises(SetupError, match=r"is gone|not found"):
            target.publish(table.path)


def test_what_is_too_large_is_reported_and_left_out(table: MovingTable) -> None:
    target = MemoryTarget(max_bytes=2000)
    target.publish(table.path)
    table.append(1, length=1000)
    table.append(2)
    [skipped] = [one for one in target.publish(table.path) if isinstance(one, Skipped)]

    assert (skipped.messages, skipped.keys) == (1, (f"images-0-8-{MODEL}",))
    assert f"images-0-8-{MODEL}" in skipped.to_text()
    assert len(target.messages) == 10
    assert DeltaTable(table.path).version() == table.version()


class Killed(Exception):
    """The process would have ended here."""


def test_a_large_commit_goes_on_where_it_was_interrupted(
    table: MovingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedstream.follow.data_files._BATCH_ROWS", 10)
    target = MemoryTarget(flush_after=10)
    target.publish(table.path)
    table.append(45)
    flush = target.flush

    def flush_or_end() -> None:
        if len(target.messages) == 28:
            raise Killed
        flush()

    monkeypatch.setattr(target, "flush", flush_or_end)
    with pytest.raises(Killed):
        target.publish(table.path)
    assert len(target.messages) == 28
    target.sent = []
    monkeypatch.setattr(target, "flush", flush)
    target.publish(table.path)

    assert len(target.messages) == 53
    check_published(target, table.path)


@pytest.mark.long
def test_the_state_is_in_the_bucket_of_the_table(
    target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_object_storage_process() as (url, client):
        client.create_bucket(Bucket="tables")
        settings = {**KEYS, "AWS_REGION": REGION, "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true"}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for offset, messages in enumerate((1, 2)):
            rows = pa.Table.from_pylist([row("one", [1, 2], offset=offset)], schema=SCHEMA)
            write_deltalake("s3a://tables/one", rows, mode="append")
            target.publish("s3a://tables/one")
            assert target.publish("s3a://tables/one") == []
            assert len(target.messages) == messages
        key = "one/_embedstream/publish-outcomes.json"
        state = json.loads(client.get_object(Bucket="tables", Key=key)["Body"].read())
        assert state["version"] == 1
