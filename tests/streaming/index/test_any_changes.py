"""Whatever happens to a table, and wherever the index looks in between, it ends up the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from embedstream.config.sections import IndexConfig
from index_oracle import check_index, update
from tables_in_motion import MovingTable

Change = Callable[[MovingTable, int], object]

CHANGES: Mapping[str, Change] = {
    "append": lambda table, number: table.append(1 + number % 4),
    "append of another writer": lambda table, number: table.append(
        1 + number % 3, operation="WRITE"
    ),
    "append of another model": lambda table, number: table.append(2, model_id="other"),
    "replace": lambda table, number: table.replace([number % 9, number % 5, number % 13]),
    "fail": lambda table, number: table.fail([number % 9, number % 7]),
    "bury": lambda table, number: table.bury([number % 5]),
    "delete": lambda table, number: table.delete(f"offset % 6 = {number % 6}"),
    "delete tombstones": lambda table, number: table.delete("error['code'] = 'deleted'"),
    "delete by merge": lambda table, number: table.delete_by_merge([number % 9, number % 4]),
    "overwrite": lambda table, number: table.overwrite(number % 5),
    "compact": lambda table, number: table.compact(),
    "vacuum": lambda table, number: table.vacuum(),
    "restore": lambda table, number: table.try_restore(number),
    "alter": lambda table, number: table.alter(),
    "add a column": lambda table, number: table.add_column(),
    "checkpoint": lambda table, number: table.checkpoint(),
}


@settings(max_examples=settings.default.max_examples // 4 if settings.default else 10)
@given(
    feed=st.booleans(),
    partitions=st.sampled_from([(), ("topic",), ("model_id", "partition")]),
    changes=st.lists(
        st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 99), st.booleans()), max_size=14
    ),
)
def test_the_index_equals_the_table(
    feed: bool, partitions: tuple[str, ...], changes: list[tuple[str, int, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = IndexConfig(path=f"{folder}/index", attributes=("shop",))
        table = MovingTable.create(Path(folder) / "table", rows=3, feed=feed, partitions=partitions)
        for change, number, looks in changes:
            CHANGES[change](table, number)
            if looks:
                update(table.path, config)
        update(table.path, config)
        check_index(table.path, config)
