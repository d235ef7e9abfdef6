"""Messages that Kafka deleted before they were read: found, recorded and gone past."""

from __future__ import annotations

import json

import pytest

from embedstream.recovery.checkpoint import DamagedFile
from embedstream.recovery.lost_messages import (
    LostRange,
    find_lost_ranges,
    read_due_offsets,
    read_skipped_batches,
    record_losses,
    refuse_losses,
    skip_lost,
)
from embedstream.recovery.resume import skip_losses
from embedstream.table.delta_log import Writer
from embedstream_core.errors import SetupError
from memory_stream import QUERY, MemoryStream, topics

LOST = [LostRange("images", 0, 6, 6), LostRange("images", 1, 6, 7)]


@pytest.fixture
def stream() -> MemoryStream:
    return MemoryStream()


def test_the_next_offsets_are_those_after_the_last_done_micro_batch(stream: MemoryStream) -> None:
    now = topics({0: 9, 1: 9})
    assert read_due_offsets(stream.look(), stream.writers, now) == {"images": {0: 6, 1: 6}}
    stream.plan(3, end=8)
    assert read_due_offsets(stream.look(), stream.writers, now) == {"images": {0: 6, 1: 6}}
    # Its rows are in the table, but the driver ended before it noted that.
    stream.writers[QUERY] = Writer(3, 2000)
    assert read_due_offsets(stream.look(), stream.writers, now) == {"images": {0: 8, 1: 8}}


def test_before_the_first_micro_batch_the_recorded_beginning_is_next() -> None:
    stream = MemoryStream(writers={})
    for batch in range(3):
        stream.checkpoint.delete(f"offsets/{batch}")
        stream.checkpoint.delete(f"commits/{batch}")
    assert read_due_offsets(stream.look(), {}, topics({0: 9, 1: 9})) == {"images": {0: 0, 1: 0}}
    stream.checkpoint.files.clear()
    assert read_due_offsets(stream.look(), {}, topics({0: 9, 1: 9})) == {}


def test_partitions_and_topics_that_were_added_are_read_from_offset_0(
    stream: MemoryStream,
) -> None:
    now = topics({0: 9, 1: 9, 2: 4}) | topics({0: 3}, name="more")
    due = read_due_offsets(stream.look(), stream.writers, now)
    assert due == {"images": {0: 6, 1: 6, 2: 0}, "more": {0: 0}}


def test_a_partition_that_ends_before_the_next_offset_is_refused(stream: MemoryStream) -> None:
    with pytest.raises(SetupError, match=r"partition 1 ends at offset 2, but .* up to offset 6"):
        read_due_offsets(stream.look(), stream.writers, topics({0: 6, 1: 2}))


def test_nothing_is_lost_while_kafka_has_what_is_next() -> None:
    due = {"images": {0: 6, 1: 6}, "gone": {0: 3}}
    assert find_lost_ranges(due, topics({0: 9, 1: 9}, earliest={0: 6, 1: 2})) == []
    refuse_losses([])


def test_lost_ranges_are_found_named_and_skipped() -> None:
    due = {"images": {0: 6, 1: 6, 2: 6}}
    lost = find_lost_ranges(due, topics({0: 9, 1: 9, 2: 9}, earliest={0: 7, 1: 8}))
    assert lost == LOST
    assert skip_lost(due, lost) == {"images": {0: 7, 1: 8, 2: 6}}
    message = r"partition 0: offsets 6 to 6 \(1 offset\); topic .* offsets 6 to 7 \(2 offsets\); "
    with pytest.raises(SetupError, match=message + "`embedstream run --accept-loss`"):
        refuse_losses(lost)


def test_losses_are_appended_to_a_file(stream: MemoryStream) -> None:
    record_losses(stream.checkpoint, LOST[:1])
    record_losses(stream.checkpoint, LOST[1:], skipped_by=3)
    text = stream.checkpoint.read("_embedstream/losses.jsonl")
    assert text is not None
    noted = [json.loads(line) for line in text.splitlines()]
    assert [(one["first"], one["last"], one["skipped_by"]) for one in noted] == [
        (6, 6, None),
        (6, 7, 3),
    ]
    assert read_skipped_batches(stream.look()) == {3}


def pass_losses(stream: MemoryStream) -> dict[str, dict[int, int]]:
    """Go past the losses; the next offsets after that."""
    now = topics({0: 9, 1: 9}, earliest={0: 7, 1: 8})
    lost = find_lost_ranges(read_due_offsets(stream.look(), stream.writers, now), now)
    skip_losses(stream.look(), stream.writers, now, lost)
    assert stream.problems() == []
    due = read_due_offsets(stream.look(), stream.writers, now)
    assert find_lost_ranges(due, now) == []
    return due


def test_an_empty_micro_batch_skips_a_loss(stream: MemoryStream) -> None:
    assert pass_losses(stream) == {"images": {0: 7, 1: 8}}
    checkpoint = stream.look()
    assert (checkpoint.planned, checkpoint.committed) == ({0, 1, 2, 3}, {0, 1, 2, 3})
    assert read_skipped_batches(checkpoint) == {3}
    assert checkpoint.read_ends(2) == {"images": {0: 6, 1: 6}}


def test_a_loss_within_a_planned_micro_batch_replaces_it(stream: MemoryStream) -> None:
    """The driver ended after it had planned a micro-batch, and retention took some of it."""
    stream.plan(3, end=9)
    assert pass_losses(stream) == {"images": {0: 7, 1: 8}}
    assert stream.look().planned == {0, 1, 2, 3}
    assert read_skipped_batches(stream.look()) == {3}


def test_a_planned_micro_batch_that_the_table_has_is_committed_first(stream: MemoryStream) -> None:
    stream.plan(3, end=6)
    stream.writers[QUERY] = Writer(3, 2000)
    assert pass_losses(stream) == {"images": {0: 7, 1: 8}}
    assert stream.look().committed == {0, 1, 2, 3, 4}
    assert read_skipped_batches(stream.look()) == {4}


def test_a_checkpoint_without_a_micro_batch_cannot_skip_a_loss() -> None:
    stream = MemoryStream(writers={})
    stream.checkpoint.files.clear()
    with pytest.raises(SetupError, match="its last file in offsets is not there; without such"):
        skip_losses(stream.look(), {}, topics({0: 9}), LOST)


def test_a_damaged_file_gives_no_offsets(stream: MemoryStream) -> None:
    stream.checkpoint.replace("offsets/2", "v1\n{}\n")
    with pytest.raises(DamagedFile):
        read_due_offsets(stream.look(), stream.writers, topics({0: 9}))
