"""The folder of a table for what reads it without Spark."""

from __future__ import annotations

from pathlib import Path

from embedstream.config.load import load_files_config
from embedstream.search.nearest import nearest
from outcome_tables import row, write_table


def test_a_configured_path_is_taken_and_no_catalog_is_asked(tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("a", [1, 0]), row("b", [0, 1], offset=1)])
    config = load_files_config({"table": {"path": table, "name": "nowhere.at.all"}})
    found = nearest([0, 1], config=config, k=1)
    assert found["image_id"].to_pylist() == ["b"]
