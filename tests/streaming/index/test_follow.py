"""The index follows every kind of commit, and says why where it reads the whole table."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, write_deltalake
from deltalake.schema import PrimitiveType

from embedstream.config.sections import IndexConfig
from embedstream.index.index_writer import IndexWriter
from embedstream.index.indexer import Indexer, update_index
from embedstream.index.reports import Applied, FullPassBegun, Report, Trouble
from embedstream.index.stores.kinds import KINDS, open_store
from embedstream_core.errors import SetupError
from index_oracle import check_index, read_state, update
from index_stores import configure_index
from outcome_tables import MODEL, SCHEMA
from tables_in_motion import MovingTable, outcome


@pytest.fixture
def table(tmp_path: Path) -> MovingTable:
    return MovingTable.create(tmp_path / "ta ble é", rows=6)


@pytest.fixture(params=["lancedb", pytest.param("pgvector", marks=pytest.mark.long)])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> IndexConfig:
    return configure_index(request.param, request, tmp_path, attributes=("shop",))


def follow(table: MovingTable, config: IndexConfig) -> list[Report]:
    reports = update(table.path, config)
    check_index(table.path, config)
    return reports


def reasons(reports: list[Report]) -> list[str]:
    """Why full passes were begun."""
    return [one.reason for one in reports if isinstance(one, FullPassBegun)]


@pytest.mark.parametrize("config", KINDS, indirect=True)
@pytest.mark.parametrize(
    ("feed", "partitions"),
    [
        (False, ()),
        (True, ("topic", "model_id")),
        pytest.param(True, (), marks=pytest.mark.long),
        pytest.param(False, ("topic", "model_id"), marks=pytest.mark.long),
    ],
)
def test_every_kind_of_commit_is_followed(
    tmp_path: Path, config: IndexConfig, feed: bool, partitions: tuple[str, ...]
) -> None:
    table = MovingTable.create(tmp_path / "table", rows=6, feed=feed, partitions=partitions)
    assert reasons(follow(table, config)) == ["there is no index yet"]
    changes: list[Callable[[], object]] = [
        lambda: table.append(4),
        lambda: table.append(3, operation="WRITE", model_id="other/model%2F é"),
        lambda: table.replace([0, 1, 7]),
        lambda: table.fail([2, 3]),
        lambda: table.replace([2]),
        lambda: table.delete("offset in (4, 8)"),
        lambda: table.delete("offset >= 9"),
        table.compact,
        lambda: table.bury([0, 5]),
        lambda: table.replace([0, 5]),
        table.alter,
        table.add_column,
        table.checkpoint,
    ]
    for change in changes:
        before = read_state(config, table.path).version
        change()
        reports = follow(table, config)
        assert reasons(reports) == [], change
        assert before is not None
        assert table.version() == before or any(isinstance(one, Applied) for one in reports)


def test_many_commits_are_one_write(table: MovingTable, config: IndexConfig) -> None:
    follow(table, config)
    for _ in range(6):
        table.append(2)
    table.bury([1, 7])
    applied = [one for one in follow(table, config) if isinstance(one, Applied)]

    assert [(one.commits, one.added, one.tombstones, one.behind) for one in applied] == [
        (7, 10, 2, 0)
    ]


def test_a_commit_larger_than_a_write_is_written_in_parts(
    table: MovingTable, config: IndexConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(table, config)
    for module in ("commits", "full_pass"):
        monkeypatch.setattr(f"embedstream.index.{module}.BYTES_PER_WRITE", 200)
    table.append(40)
    table.replace(list(range(12)))
    table.bury([3])
    assert reasons(follow(table, config)) == []
    update(table.path, config, rebuild=True)
    check_index(table.path, config)


def test_an_overwrite_and_a_restore_are_followed(table: MovingTable, config: IndexConfig) -> None:
    follow(table, config)
    table.overwrite(5)
    assert reasons(follow(table, config)) == []
    table.restore(0)
    assert reasons(follow(table, config)) == []


def test_tombstones_that_are_deleted_bring_their_rows_back(
    table: MovingTable, config: IndexConfig
) -> None:
    table.bury([0, 5])
    follow(table, config)
    table.delete("error['code'] = 'deleted'")
    [reason] = reasons(follow(table, config))
    assert "deletes tombstones" in reason


def test_tombstones_that_are_deleted_with_their_rows_need_no_full_pass(
    table: MovingTable, config: IndexConfig
) -> None:
    table.bury([0, 5])
    follow(table, config)
    table.delete("offset in (0, 5)")
    table.delete("error['code'] = 'deleted'")
    assert reasons(follow(table, config)) == []


def test_files_that_are_gone_lead_to_a_full_pass(table: MovingTable, config: IndexConfig) -> None:
    follow(table, config)
    table.append(2)
    table.compact()
    table.vacuum()
    [reason] = reasons(follow(table, config))
    assert "is gone, as after VACUUM" in reason


def test_entries_that_are_gone_lead_to_a_full_pass(table: MovingTable, config: IndexConfig) -> None:
    follow(table, config)
    table.append(2)
    table.append(2)
    table.checkpoint()
    (Path(table.path) / f"_delta_log/{table.version() - 1:020}.json").unlink()
    [reason] = reasons(follow(table, config))
    assert reason.endswith("of the table's log is gone")


def test_another_table_at_the_same_path_leads_to_a_full_pass(
    table: MovingTable, config: IndexConfig
) -> None:
    for _ in range(3):
        table.append(1)
    follow(table, config)
    other = MovingTable.replace_all(table, rows=3)
    [reason] = reasons(follow(other, config))
    assert "another table" in reason


def test_a_table_restored_from_a_copy_leads_to_a_full_pass(
    table: MovingTable, config: IndexConfig, tmp_path: Path
) -> None:
    table.append(1)
    follow(table, config)
    log = Path(table.path) / "_delta_log"
    (log / f"{table.version():020}.json").unlink()
    [shorter] = reasons(follow(table, config))
    assert "the index at" in shorter
    table.append(2)
    follow(table, config)
    (log / f"{table.version():020}.json").unlink()
    table.append(3)
    table.append(1)
    [other] = reasons(follow(table, config))
    assert "is not the one that was followed" in other


def test_other_attributes_lead_to_a_full_pass(table: MovingTable, config: IndexConfig) -> None:
    follow(table, config)
    other = config.model_copy(update={"attributes": ("shop", "Größe")})
    [reason] = reasons(follow(table, other))
    assert reason == "index.attributes was [shop], and is now [shop, Größe]"


def test_a_table_of_an_earlier_version_is_followed(tmp_path: Path, config: IndexConfig) -> None:
    names = [name for name in SCHEMA.names if name not in ("media", "attributes")]
    path = str(tmp_path / "table")
    rows = pa.Table.from_pylist([outcome(offset) for offset in range(3)], schema=SCHEMA)
    write_deltalake(path, rows.select(names))
    table = MovingTable(path, rows=3)
    follow(table, config)
    DeltaTable(path).alter.add_columns(
        [Field.from_arrow(one) for one in SCHEMA if one.name in ("media", "attributes")]
    )
    table.append(2)
    table.replace([0, 4])
    assert reasons(follow(table, config)) == []


def test_files_of_absolute_paths_are_read(tmp_path: Path, config: IndexConfig) -> None:
    table = MovingTable.create(tmp_path / "origin é", rows=4)
    table.append(2)
    clone = tmp_path / "clone"
    (clone / "_delta_log").mkdir(parents=True)
    for version in range(table.version() + 1):
        name = f"_delta_log/{version:020}.json"
        actions = map(json.loads, (Path(table.path) / name).read_text().splitlines())
        lines = [json.dumps(_make_absolute(one, table.path)) for one in actions]
        (clone / name).write_text("\n".join(lines))
    copy = MovingTable(str(clone), rows=6)

    # deltalake reads no files outside of the table's folder, so the original is compared.
    update(copy.path, config)
    table.append(1)
    copy.append(1)
    assert reasons(update(copy.path, config)) == []
    [collection] = read_state(config, copy.path).collections.values()
    with closing(open_store(config, table=copy.path, mode="read")) as store:
        offsets = store.list_keys(collection.name).column("offset").to_pylist()
    assert sorted(offsets) == [0, 1, 2, 3, 4, 5]


def _make_absolute(action: dict[str, Any], folder: str) -> dict[str, Any]:
    if "add" in action:
        action["add"]["path"] = f"{Path(folder).as_uri()}/{action['add']['path']}"
    return action


def test_vectors_of_another_length_are_left_out_and_logged(
    table: MovingTable, config: IndexConfig, caplog: pytest.LogCaptureFixture
) -> None:
    follow(table, config)
    table.append(2, length=5)
    update(table.path, config)
    assert "1 rows of" in caplog.text
    assert "do not have" in caplog.text
    assert len(read_state(config, table.path).collections) == 1


def test_what_is_no_table_of_embedstream_is_a_sentence(tmp_path: Path, config: IndexConfig) -> None:
    with pytest.raises(SetupError, match="there is no Delta table at"):
        update(str(tmp_path / "none"), config)
    path = str(tmp_path / "other")
    write_deltalake(path, pa.table({"topic": ["a"]}))
    with pytest.raises(SetupError, match="column 'partition' is missing, not integer"):
        update(path, config)


def test_a_file_that_is_missing_from_the_last_version_is_a_sentence(
    table: MovingTable, config: IndexConfig
) -> None:
    next(Path(table.path).rglob("*.parquet")).unlink()
    for _ in range(2):
        with pytest.raises(SetupError, match=r"is gone|not found"):
            update(table.path, config)
    table.overwrite(3)
    follow(table, config)


def test_an_added_column_of_its_own_does_not_matter(
    table: MovingTable, config: IndexConfig
) -> None:
    DeltaTable(table.path).alter.add_columns(Field("label", PrimitiveType("string")))
    follow(table, config)
    assert list(read_state(config, table.path).collections) == [MODEL]


class StopAfter(threading.Event):
    """Is set from the given look on."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


def test_an_interrupted_full_pass_resumes(
    table: MovingTable, config: IndexConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedstream.index.full_pass.ROWS_PER_WRITE", 2)
    for _ in range(4):
        table.append(3)
    reports: list[Report] = []
    stop = StopAfter(5)
    update_index(table.path, config, report=reports.append, stop=stop)
    interrupted = read_state(config, table.path)
    assert interrupted.version is None
    table.append(2)

    resumed = follow(table, config)

    [begun] = [one for one in resumed if isinstance(one, FullPassBegun)]
    assert begun.files_done == interrupted.full_pass.files_done > 0  # type: ignore[union-attr]
    assert read_state(config, table.path).generation == 1


def test_full_passes_do_not_follow_one_another_at_once(
    table: MovingTable, config: IndexConfig
) -> None:
    reports: list[Report] = []
    stop = threading.Event()
    with closing(open_store(config, table=table.path, mode="write")) as store:
        index = IndexWriter(store, config, reports.append)
        indexer = Indexer(table.path, index, stop=stop, pause_s=60)
        while indexer.step():
            pass
        table.append(2)
        table.compact()
        table.vacuum()
        assert not indexer.step()
        assert not indexer.step()
    assert len(reasons(reports)) == 1
    [trouble] = [one for one in reports if isinstance(one, Trouble)]
    assert trouble.reason.startswith("a full pass is due: ")
    assert 50 < trouble.retry_s <= 60
    follow(table, config)


def test_an_entry_that_is_cut_short_is_not_passed_over(
    table: MovingTable, config: IndexConfig
) -> None:
    follow(table, config)
    entry = Path(table.path) / f"_delta_log/{table.version() + 1:020}.json"
    table.append(2)
    text = entry.read_text()
    with closing(open_store(config, table=table.path, mode="write")) as store:
        index = IndexWriter(store, config, lambda _: None)
        indexer = Indexer(table.path, index, stop=threading.Event())
        for content in ("", text[:-20]):
            entry.write_text(content)
            with pytest.raises(SetupError, match="is empty or cut short"):
                indexer.step()
    entry.write_text(text)
    assert reasons(follow(table, config)) == []


def test_without_a_table_nothing_is_left_in_its_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="there is no Delta table"):
        update(str(tmp_path / "table"), IndexConfig())
    assert not (tmp_path / "table").exists()
