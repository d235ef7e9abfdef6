"""What is refused before a store is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedstream.config.sections import IndexConfig
from embedstream.index.stores.kinds import open_store
from embedstream_core.errors import SetupError


def test_an_unknown_kind_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"unknown index\.kind 'faiss'; known: lancedb, pgvector"):
        open_store(IndexConfig(kind="faiss"), table=str(tmp_path), mode="read")


def test_attributes_with_one_column_are_refused(tmp_path: Path) -> None:
    config = IndexConfig(attributes=("shop-id", "price", "Shop id"))
    with pytest.raises(SetupError, match=r"'shop-id' and 'Shop id', .* attribute_shop_id;"):
        open_store(config, table=str(tmp_path), mode="write")


def test_an_index_that_is_being_made_is_none_yet(tmp_path: Path) -> None:
    (tmp_path / "_embedstream/index/embedstream_state.lance/data").mkdir(parents=True)
    table = str(tmp_path)
    reader = open_store(IndexConfig(), table=table, mode="read")
    assert reader.read_state() is None
    writer = open_store(IndexConfig(), table=table, mode="write")
    writer.write([], "made")
    assert reader.read_state() == "made"
    writer.close()
    reader.close()
