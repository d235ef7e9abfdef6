"""A table with a feature that deltalake does not know is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedstream.config.sections import IndexConfig
from embedstream.follow.table_reader import open_table
from embedstream_core.errors import SetupError
from index_oracle import update
from outcome_tables import row, write_table


def add_feature(table: str, name: str) -> None:
    """As Spark does it, in a commit of its own."""
    features = {"readerFeatures": [name], "writerFeatures": [name]}
    protocol = {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}}
    log = Path(table, "_delta_log")
    version = len(list(log.glob("*.json")))
    (log / f"{version:020}.json").write_text(json.dumps(protocol))


@pytest.mark.parametrize("name", ["typeWidening", "vacuumProtocolCheck"])
def test_a_feature_that_cannot_be_read_is_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("a", [1.0, 0.0])])
    config = IndexConfig(path=str(tmp_path / "index"))
    update(table, config)
    add_feature(table, name)
    for read in (lambda: open_table(table), lambda: update(table, config)):
        with pytest.raises(SetupError, match=rf"without Spark: .* run ALTER TABLE .* {name}"):
            read()


@pytest.mark.parametrize("name", ["v2Checkpoint", "deletionVectors", "timestampNtz"])
def test_a_feature_that_can_be_read_is_no_obstacle(name: str, tmp_path: Path) -> None:
    table = write_table(tmp_path, [row("a", [1.0, 0.0])])
    config = IndexConfig(path=str(tmp_path / "index"))
    add_feature(table, name)
    update(table, config)
    assert open_table(table).version() == 2


def test_a_damaged_log_is_reported_without_the_stack_of_the_library(tmp_path: Path) -> None:
    log = tmp_path / "_delta_log"
    log.mkdir()
    (log / f"{0:020}.json").write_text("not json")
    with pytest.raises(SetupError, match=r"cannot be read without Spark: .*; it has to") as caught:
        open_table(str(tmp_path))
    assert "unknown" not in str(caught.value)
    assert "pthread" not in str(caught.value)
