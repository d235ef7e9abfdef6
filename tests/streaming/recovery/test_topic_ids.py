"""The ids of topics, by which a topic that was created again is recognized."""

from __future__ import annotations

import pytest

from embedstream.recovery.topic_ids import check_ids, record_ids
from embedstream_core.errors import SetupError
from memory_folder import MemoryFolder
from memory_stream import topics

FILE = "_embedstream/topics.json"


@pytest.fixture
def folder() -> MemoryFolder:
    return MemoryFolder(location="table")


def test_a_topic_that_is_read_for_the_first_time_passes_and_nothing_is_written(
    folder: MemoryFolder,
) -> None:
    check_ids(folder, topics({0: 1}))
    assert folder.files == {}


def test_a_recorded_topic_passes_as_long_as_its_id_is_the_same(folder: MemoryFolder) -> None:
    record_ids(folder, topics({0: 1}))
    check_ids(folder, topics({0: 5, 1: 5}))
    message = (
        r"topic 'images' is not the one that was read so far: its id was first \(noted 20.* in "
        r"table/_embedstream/topics\.json\) and is second now; .*start over with another table"
    )
    with pytest.raises(SetupError, match=message):
        check_ids(folder, topics({0: 5}, id="second"))


def test_a_new_topic_is_added_and_recorded_ids_stay(folder: MemoryFolder) -> None:
    record_ids(folder, topics({0: 1}))
    before = folder.read(FILE)
    record_ids(folder, topics({0: 2}))
    assert folder.read(FILE) == before

    record_ids(folder, topics({0: 2}, id="second") | topics({0: 1}, name="more", id="third"))

    check_ids(folder, topics({0: 1}) | topics({0: 1}, name="more", id="third"))


def test_a_broker_without_ids_may_have_them_later_and_lose_them(folder: MemoryFolder) -> None:
    without = topics({0: 1}, id="A" * 22)
    record_ids(folder, without)
    check_ids(folder, topics({0: 1}))

    record_ids(folder, topics({0: 1}))
    check_ids(folder, without)
    with pytest.raises(SetupError, match="was first"):
        check_ids(folder, topics({0: 1}, id="second"))


@pytest.mark.parametrize("text", ["{", "[]", '{"images": {}}', '{"images": "first"}'])
def test_a_damaged_file_is_refused(folder: MemoryFolder, text: str) -> None:
    folder.create(FILE, text)
    with pytest.raises(SetupError, match=r"the ids of the topics, cannot be read .*restore it"):
        check_ids(folder, topics({0: 1}))
