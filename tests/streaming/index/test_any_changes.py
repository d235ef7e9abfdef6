"""Whatever happens to a table, and wherever the index looks in between, it ends up the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_oracle import check_index, update
from index_stores import configure_index
from tables_in_motion import CHANGES, MovingTable


@settings(max_examples=(settings.default or settings()).max_examples // 4)
@given(
    feed=st.booleans(),
    partitions=st.sampled_from([(), ("topic",), ("model_id", "partition")]),
    changes=st.lists(
        st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 99), st.booleans()), max_size=14
    ),
)
@pytest.mark.parametrize("kind", ["lancedb", pytest.param("pgvector", marks=pytest.mark.long)])
def test_the_index_equals_the_table(
    kind: str,
    request: pytest.FixtureRequest,
    feed: bool,
    partitions: tuple[str, ...],
    changes: list[tuple[str, int, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = configure_index(kind, request, Path(folder), attributes=("shop",))
        table = MovingTable.create(Path(folder) / "table", rows=3, feed=feed, partitions=partitions)
        for change, number, looks in changes:
            CHANGES[change](table, number)
            if looks:
                update(table.path, config)
        update(table.path, config)
        check_index(table.path, config)
