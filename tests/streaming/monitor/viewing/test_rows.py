"""The newest rows, the failures by code, and the row of a message, in real tables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from embedstream.config.load import load_files_config
from embedstream.monitor.viewing.rows import Rows
from embedstream_core.errors import SetupError
from outcome_tables import MODEL, SCHEMA, row, write_table
from tables_in_motion import MovingTable, tombstone
from viewed_tables import START, at, made, stream_config


def failure(offset: int, code: str = "image_corrupt", **columns: Any) -> dict[str, Any]:
    error = {"code": code, "stage": "decode", "message": "cut short"}
    return made(offset, embedding=None, error=error, **columns)


def open_rows(folder: Path, table: str, *, config_words: str = "CONFIG") -> Rows:
    return Rows(stream_config(folder, table), config_words=config_words)


def newest(rows: Rows, count: int) -> list[int]:
    return [card.position.offset for card in rows.list_newest(count)]


def test_the_newest_embeddings_are_listed_whatever_file_they_are_in(tmp_path: Path) -> None:
    first = [made(offset, minutes=30 - offset) for offset in range(10)]
    second = [made(offset) if offset % 3 else failure(offset) for offset in range(10, 20)]
    table = write_table(tmp_path, first, second)
    rows = open_rows(tmp_path, table)

    assert newest(rows, 4) == [0, 1, 2, 3]
    assert newest(rows, 100) == [*range(10), 19, 17, 16, 14, 13, 11, 10]

    DeltaTable(table).optimize.compact()
    assert newest(open_rows(tmp_path, table), 12) == [*range(10), 19, 17]


def test_a_time_that_python_does_not_have_hides_no_row(tmp_path: Path) -> None:
    """A producer may give a message any time."""
    rows = pa.Table.from_pylist([made(0), made(1)], schema=SCHEMA)
    times = pa.array([9 * 10**17, -9 * 10**17]).cast(pa.timestamp("us", "UTC"))
    column = rows.schema.get_field_index("timestamp")
    write_deltalake(
        write_table(tmp_path, []), rows.set_column(column, "timestamp", times), mode="append"
    )
    cards = open_rows(tmp_path, str(tmp_path / "table")).list_newest(2)
    assert [(card.position.offset, card.timestamp) for card in cards] == [(1, None), (0, None)]


def test_a_version_of_the_table_is_seen_soon(tmp_path: Path) -> None:
    table = write_table(tmp_path, [made(0)])
    rows = open_rows(tmp_path, table)
    assert newest(rows, 3) == [0]
    write_table(tmp_path, [made(1)])
    while newest(rows, 3) == [0]:
        pass
    assert newest(rows, 3) == [1, 0]


def test_rows_of_deleted_keys_are_left_out(tmp_path: Path) -> None:
    moving = MovingTable.create(tmp_path / "table", rows=40)
    # Every fifth offset has the same key, every seventh is a failure.
    moving.bury([1, 2])
    rows = open_rows(tmp_path, moving.path)

    expected = [one for one in range(40) if one % 5 not in (1, 2) and one % 7 != 6]
    assert newest(rows, 100) == expected[::-1]
    assert newest(rows, 5) == expected[:-6:-1]
    failed = [one for one in range(40) if one % 5 not in (1, 2) and one % 7 == 6]
    (group,) = rows.list_failures(2)
    assert (group.code, group.count) == ("image_corrupt", len(failed))
    assert [card.position.offset for card in group.newest] == failed[:-3:-1]
    for hidden in (1, 40):
        with pytest.raises(SetupError, match=f"images-0-{hidden} cannot be shown: its key was del"):
            rows.find_card(at(hidden))
    # A later message of the key is another matter.
    write_deltalake(
        moving.path, pa.Table.from_pylist([made(99, key=b"key 1")], schema=SCHEMA), mode="append"
    )
    assert rows.find_card(at(99)).image_id == "id 99"


def test_failures_are_grouped_by_code_the_most_frequent_first(tmp_path: Path) -> None:
    codes = ["image_corrupt", "reference_denied", "image_corrupt", "text_empty", "image_corrupt"]
    table = write_table(
        tmp_path, [failure(offset, code) for offset, code in enumerate(codes)], [made(7)]
    )

    groups = open_rows(tmp_path, table).list_failures(2)

    found = [(one.code, one.count, [card.position.offset for card in one.newest]) for one in groups]
    assert found == [
        ("image_corrupt", 3, [4, 2]),
        ("reference_denied", 1, [1]),
        ("text_empty", 1, [3]),
    ]
    card = groups[0].newest[0]
    assert (card.code, card.stage, card.message) == ("image_corrupt", "decode", "cut short")
    assert groups[0].replay == "embedstream replay CONFIG --code image_corrupt"


def test_the_commands_of_a_replay_are_quoted(tmp_path: Path) -> None:
    table = write_table(tmp_path, [failure(0, "x; $(reboot)")])
    rows = open_rows(tmp_path, table, config_words="'my stream.yaml' --set a=b")
    (group,) = rows.list_failures(1)
    position = group.newest[0].position

    start = ["embedstream", "replay", "my stream.yaml", "--set", "a=b"]
    assert shlex.split(group.replay) == [*start, "--code", "x; $(reboot)"]
    offsets = f"{position.topic}:{position.partition}:0-0"
    assert shlex.split(rows.find_card(position).replay) == [*start, "--offsets", offsets]


def test_a_table_without_a_stream_has_no_replay(tmp_path: Path) -> None:
    table = write_table(tmp_path, [failure(0)])
    config = load_files_config({"table": {"path": table}})
    (group,) = Rows(config, config_words="CONFIG").list_failures(1)
    assert group.replay == ""


def test_a_card_has_what_is_known_of_a_row_and_long_texts_are_cut(tmp_path: Path) -> None:
    media = {"type": "image/png", "width": 30, "height": 20}
    attributes = [(f"name {number}", "v" * 5000) for number in range(100)]
    full = made(3, uri="file:///a", media=media, attributes=attributes, timestamp=START)
    other = failure(3, model_id="another")
    table = write_table(tmp_path, [other, full])

    card = open_rows(tmp_path, table).find_card(at(3))

    assert (card.position, card.image_id, card.model_id) == (at(3), "id 3", MODEL)
    assert (card.uri, card.media_type, card.width, card.height) == (
        "file:///a",
        "image/png",
        30,
        20,
    )
    assert card.timestamp == START
    assert card.code is None
    assert len(card.attributes) == 50
    assert set(map(len, card.attributes.values())) == {1001}
    with pytest.raises(SetupError, match="images-0-4 cannot be shown: the table has no row of it"):
        open_rows(tmp_path, table).find_card(at(4))


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It lacks columns, and has no time at which its rows were made."""
    names = ["topic", "partition", "offset", "image_id", "uri", "embedding", "error", "model_id"]
    schema = pa.schema([SCHEMA.field(name) for name in names])
    given = [row("a", [1.0, 0.0], offset=1), row("b", None, offset=2), row("c", [1.0], offset=3)]
    write_deltalake(str(tmp_path / "table"), pa.Table.from_pylist(given, schema=schema))
    rows = open_rows(tmp_path, str(tmp_path / "table"))

    assert newest(rows, 10) == [3, 1]
    (group,) = rows.list_failures(3)
    assert [card.image_id for card in group.newest] == ["b"]
    assert rows.find_card(at(1)).attributes == {}


def test_rows_that_came_from_no_message_are_listed(tmp_path: Path) -> None:
    """As those of `embedstream batch`."""
    nowhere = {"topic": None, "partition": None, "offset": None}
    table = write_table(tmp_path, [made(1) | nowhere, failure(2) | nowhere])
    rows = open_rows(tmp_path, table)
    (card,) = rows.list_newest(3)
    assert (card.image_id, card.position.topic) == ("id 1", "")
    assert [group.count for group in rows.list_failures(3)] == [1]
    with pytest.raises(SetupError, match="came from no message"):
        rows.find_card(card.position)


def test_a_table_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    rows = open_rows(tmp_path, str(tmp_path / "none"))
    with pytest.raises(SetupError, match="there is no Delta table at"):
        rows.list_newest(3)
    write_deltalake(
        str(tmp_path / "none"), pa.Table.from_pylist([tombstone(0, b"a")], schema=SCHEMA)
    )
    assert rows.list_newest(3) == []
    assert rows.list_failures(3) == []
