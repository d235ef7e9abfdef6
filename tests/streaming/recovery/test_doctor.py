"""A damaged checkpoint or table log: the doctor names the file and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from embedstream.recovery.doctor import check_messages
from embedstream.recovery.topic_ids import record_ids
from embedstream.table.delta_log import Writer
from embedstream_core.errors import SetupError
from memory_folder import MemoryFolder
from memory_stream import QUERY, MemoryStream, topics

START_OVER = "move the checkpoint away and start with `embedstream run --adopt`"
LOSS = '{"topic": "images", "partition": 0, "first": 6, "last": 6, "skipped_by": 2}\n'


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream()


def cut(folder: MemoryFolder, name: str) -> None:
    text = folder.read(name)
    assert text is not None
    folder.replace(name, text[:-9])


def lose_checkpoint(stream: MemoryStream) -> None:
    stream.checkpoint.files.clear()


def restore_older_copy(stream: MemoryStream) -> None:
    stream.checkpoint.delete("offsets/2")
    stream.checkpoint.delete("commits/2")


def test_a_stream_without_damage_has_no_problem(stream: MemoryStream) -> None:
    assert stream.problems() == []


def test_before_the_first_start_there_is_no_problem() -> None:
    stream = MemoryStream(writers={})
    lose_checkpoint(stream)
    stream.table.files.clear()
    assert stream.problems() == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda s: s.checkpoint.replace("offsets/2", ""), f"offsets/2 is empty.*{START_OVER}"),
        (lambda s: cut(s.checkpoint, "offsets/2"), f"offsets/2 is cut short.*{START_OVER}"),
        (lambda s: s.checkpoint.delete("offsets/1"), f"offsets/1 is not there.*{START_OVER}"),
        (
            lambda s: s.checkpoint.replace("offsets/2", "1\n{}\n{}"),
            "offsets/2 does not begin with a version",
        ),
        (
            lambda s: s.checkpoint.replace("offsets/2", "v1\n{}\n[1]"),
            "offsets/2 ends with no offsets of topics",
        ),
        (
            lambda s: s.checkpoint.files.update({"checkpoint/offsets/2": b"\xff"}),
            "offsets/2 cannot be read .it is not UTF-8 text",
        ),
        (lambda s: s.checkpoint.delete("offsets/2"), f"commits/2 has no offsets/2.*{START_OVER}"),
        (lambda s: s.checkpoint.delete("metadata"), "metadata is missing.*write into it"),
        (lambda s: s.checkpoint.replace("metadata", ""), "metadata is empty.*write into it"),
        (lambda s: s.checkpoint.replace("metadata", "[]"), "metadata holds no query id"),
        (lambda s: cut(s.table, f"_delta_log/{2:020}.json"), f"{2:020}.json is cut short.*a copy"),
        (lambda s: s.table.delete(f"_delta_log/{2:020}.json"), f"{2:020}.json is missing between"),
        (
            lambda s: s.table.files.update({f"table/_delta_log/{2:020}.json": b"\xff"}),
            f"{2:020}.json cannot be read .it is not UTF-8 text",
        ),
        (
            lambda s: s.checkpoint.replace("metadata", '{"id": "other"}'),
            "the query other, which never wrote to the table 'table'.*belongs to another table",
        ),
        (
            lambda s: s.writers.update(newer=Writer(0, 2000)),
            "but the query newer wrote to the table after it: rows would be doubled",
        ),
        (restore_older_copy, f"has 2: the checkpoint is an older copy.*{START_OVER}"),
        (
            lambda s: s.writers.update({QUERY: Writer(1, 1000)}),
            "commits/2 says that micro-batch 2 is done, but the last one in the table 'table' is 1",
        ),
        (
            lambda s: s.checkpoint.replace("_embedstream/losses.jsonl", "{"),
            "the losses that were accepted, cannot be read .*repair or delete its last line",
        ),
    ],
)
def test_each_damage_is_named_and_keeps_a_stream_from_starting(
    stream: MemoryStream, damage: Callable[[MemoryStream], None], problem: str
) -> None:
    damage(stream)

    assert re.search(problem, "\n".join(stream.problems()))
    assert re.search(problem, "\n".join(stream.problems(thorough=False)))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda s: s.checkpoint.replace("offsets/0", ""), "offsets/0 is empty.*nothing is lost"),
        (lambda s: s.checkpoint.replace("commits/1", ""), "commits/1 is empty"),
        (lose_checkpoint, f"there is no checkpoint at.*{QUERY} wrote to the table.*--adopt"),
    ],
)
def test_damage_that_a_start_does_not_read_is_found_by_the_doctor_alone(
    stream: MemoryStream, damage: Callable[[MemoryStream], None], problem: str
) -> None:
    damage(stream)

    (found,) = stream.problems()
    assert re.search(problem, found)
    assert stream.problems(thorough=False) == []


def test_a_broken_commit_may_be_deleted_if_the_table_has_the_micro_batch(
    stream: MemoryStream,
) -> None:
    stream.checkpoint.replace("commits/2", "")
    (problem,) = stream.problems()
    assert "commits/2 is empty: Spark cannot start; the table has micro-batch 2" in problem
    assert "Spark repeats it and the table skips it" in problem

    stream.checkpoint.delete("commits/2")

    assert stream.problems() == []


def test_a_broken_commit_that_the_table_does_not_have_is_no_loss_to_hide(
    stream: MemoryStream,
) -> None:
    stream.writers[QUERY] = Writer(1, 1000)
    stream.checkpoint.replace("commits/2", "")
    (problem,) = stream.problems()
    assert START_OVER in problem


def test_a_broken_plan_may_be_deleted_if_the_micro_batch_is_not_done(stream: MemoryStream) -> None:
    stream.checkpoint.create("offsets/3", "v1\n{")
    (problem,) = stream.problems()
    assert "offsets/3 has 2 lines where Spark writes 3" in problem
    assert "delete the file and .3.crc next to it: Spark plans it again" in problem

    stream.checkpoint.delete("offsets/3")

    assert stream.problems() == []


def test_a_broken_plan_of_a_micro_batch_in_the_table_must_not_be_deleted(
    stream: MemoryStream,
) -> None:
    stream.checkpoint.create("offsets/3", "v1\n{")
    stream.writers[QUERY] = Writer(3, 1000)
    (problem,) = stream.problems()
    assert START_OVER in problem


@pytest.mark.parametrize("metadata", [None, ""], ids=["missing", "empty"])
def test_a_missing_query_id_is_written_as_the_doctor_says(
    stream: MemoryStream, metadata: str | None
) -> None:
    stream.checkpoint.delete("metadata")
    if metadata is not None:
        stream.checkpoint.create("metadata", metadata)
    (problem,) = stream.problems()
    remedy = r"delete \.metadata\.crc and write into it the table's only writer: (\{.*\})$"
    found = re.search(remedy, problem)
    assert found is not None, problem

    stream.checkpoint.replace("metadata", found[1])

    assert stream.problems() == []


def test_of_several_writers_none_is_taken_for_the_missing_query_id(stream: MemoryStream) -> None:
    stream.checkpoint.delete("metadata")
    stream.writers["other"] = Writer(0, 0)
    (problem,) = stream.problems()
    assert START_OVER in problem


def test_a_log_that_is_cut_off_at_its_end_puts_the_checkpoint_ahead(stream: MemoryStream) -> None:
    last = f"_delta_log/{4:020}.json"
    stream.table.replace(last, "")
    (problem,) = stream.problems()
    assert f"{last} is empty: Delta cannot open the table; it is the last entry" in problem
    assert f"({4:020}.crc, .{4:020}.json.crc)" in problem
    assert "run `embedstream doctor` again" in problem

    stream.table.delete(last)
    stream.writers[QUERY] = Writer(1, 1000)

    (problem,) = stream.problems()
    assert "commits/2 says that micro-batch 2 is done" in problem
    assert START_OVER in problem


def test_a_micro_batch_that_only_skipped_a_loss_is_not_reported_as_missing(
    stream: MemoryStream,
) -> None:
    stream.writers[QUERY] = Writer(1, 1000)
    stream.checkpoint.create("_embedstream/losses.jsonl", LOSS)
    assert stream.problems() == []


def test_entries_before_the_logs_checkpoint_may_be_gone(stream: MemoryStream) -> None:
    stream.table.create(f"_delta_log/{3:020}.checkpoint.parquet", "PAR1")
    for version in range(2):
        stream.table.delete(f"_delta_log/{version:020}.json")
    assert stream.problems() == []
    cut(stream.table, f"_delta_log/{2:020}.json")
    assert len(stream.problems()) == 1
    assert stream.problems(thorough=False) == []
    cut(stream.table, f"_delta_log/{4:020}.json")
    assert len(stream.problems(thorough=False)) == 1


def test_topics_are_as_they_were_read(stream: MemoryStream) -> None:
    now = topics({0: 8, 1: 8})
    for folder in (stream.checkpoint, stream.table):
        record_ids(folder, now)
    message = check_messages(stream.look(), stream.table, stream.writers, now)
    assert message == "images: as they were read, nothing lost"

    stream.checkpoint.replace("offsets/2", "")
    message = check_messages(stream.look(), stream.table, stream.writers, now)
    assert message == "images: how far they were read is unknown, see checkpoint"


@pytest.mark.parametrize("where", ["checkpoint", "table"])
def test_a_topic_that_was_created_again_is_recognized_by_either_folder(
    stream: MemoryStream, where: str
) -> None:
    record_ids(getattr(stream, where), topics({0: 8, 1: 8}, id="before"))
    with pytest.raises(SetupError, match=r"'images' is not the one that was read so far.*before"):
        check_messages(stream.look(), stream.table, stream.writers, topics({0: 8, 1: 8}))


def test_lost_messages_are_a_problem(stream: MemoryStream) -> None:
    now = topics({0: 9, 1: 9}, earliest={1: 8})
    with pytest.raises(SetupError, match=r"partition 1: offsets 6 to 7 \(2 offsets\); `embed"):
        check_messages(stream.look(), stream.table, stream.writers, now)
