"""Where partitions begin when a table is adopted without its checkpoint."""

from __future__ import annotations

import pytest

from embedstream.recovery.adopt import choose_starts
from embedstream.recovery.checkpoint import Checkpoint
from embedstream_core.errors import SetupError
from memory_folder import MemoryFolder
from memory_stream import topics

ENDS = {"images": {0: 6}}
TOPICS = topics({0: 9, 1: 9}) | topics({0: 3}, name="more")


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(MemoryFolder(location="new"))


@pytest.mark.parametrize(
    ("otherwise", "rest"),
    [
        ("earliest", (-2, -2)),
        ("latest", (-1, -1)),
        ({"images": {1: 4}, "more": {0: 2}}, (4, 2)),
        ({"images": {0: 1, 1: 4}, "more": {0: 2}}, (4, 2)),
    ],
)
def test_partitions_without_a_row_begin_where_the_configuration_says(
    checkpoint: Checkpoint, otherwise: str | dict[str, dict[int, int]], rest: tuple[int, int]
) -> None:
    assert choose_starts(ENDS, TOPICS, otherwise, checkpoint=checkpoint) == {
        "images": {0: 6, 1: rest[0]},
        "more": {0: rest[1]},
    }


@pytest.mark.parametrize("otherwise", [{}, {"images": {0: 6}}, {"images": {1: 4}}])
def test_a_partition_without_row_and_offset_is_refused(
    checkpoint: Checkpoint, otherwise: dict[str, dict[int, int]]
) -> None:
    with pytest.raises(SetupError, match=r"no offset for topic .* of which the table has no row"):
        choose_starts(ENDS, TOPICS, otherwise, checkpoint=checkpoint)


def test_a_beginning_that_spark_has_recorded_must_be_the_same(checkpoint: Checkpoint) -> None:
    checkpoint.folder.create("sources/0/0", '\0v1\n{"images":{"0":6,"1":5}}')
    assert choose_starts(ENDS, TOPICS, "earliest", checkpoint=checkpoint)["images"][0] == 6
    checkpoint.folder.replace("sources/0/0", '\0v1\n{"images":{"0":0}}')
    with pytest.raises(
        SetupError, match=r"partition 0, offset 6.* and has done nothing; delete it"
    ):
        choose_starts(ENDS, TOPICS, "earliest", checkpoint=checkpoint)
