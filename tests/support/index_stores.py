"""An index of each kind, and rows for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from embedstream.config.sections import IndexConfig
from embedstream.index.rows import build_key_schema, build_row_schema, name_attribute_column
from embedstream.index.stores.kinds import KINDS

__all__ = ["build_keys", "build_rows", "build_vectors", "configure_index", "index"]

_schemas = count()


def configure_index(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, **settings: Any
) -> IndexConfig:
    """Return the configuration of an index of this kind that does not exist yet."""
    if kind == "pgvector":
        url = request.getfixturevalue("postgres")
        return IndexConfig(kind=kind, url=url, db_schema=f"index_{next(_schemas)}", **settings)
    return IndexConfig(kind=kind, path=str(tmp_path / "index"), **settings)


@pytest.fixture(params=KINDS)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> IndexConfig:
    """Return the configuration of an index, once for each kind of store."""
    return configure_index(request.param, request, tmp_path)


def build_vectors(offsets: Sequence[int], dimension: int) -> npt.NDArray[np.float32]:
    """Return a random vector for each offset, always the same for the same one."""
    rows = [
        np.random.default_rng([dimension, abs(one)]).normal(size=dimension).astype(np.float32)
        for one in offsets
    ]
    return np.stack(rows) if rows else np.empty((0, dimension), np.float32)


def build_rows(
    offsets: Sequence[int],
    *,
    dimension: int = 8,
    topic: str = "photos",
    partition: int = 0,
    vectors: npt.NDArray[np.float32] | None = None,
    attributes: Mapping[str, Sequence[str | None]] | None = None,
    **columns: Sequence[Any],
) -> pa.Table:
    """Return rows of a collection; columns that are not given are null."""
    attributes = attributes or {}
    schema = build_row_schema(dimension, list(attributes))
    if vectors is None:
        vectors = build_vectors(offsets, dimension)
    given: dict[str, Any] = {
        "topic": [topic] * len(offsets),
        "partition": [partition] * len(offsets),
        "offset": list(offsets),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1), pa.float32()), dimension
        ),
        **{name_attribute_column(name): values for name, values in attributes.items()},
        **columns,
    }
    return pa.table(
        [pa.array(given.get(one.name, [None] * len(offsets)), one.type) for one in schema],
        schema=schema,
    )


def build_keys(offsets: Sequence[int], *, topic: str = "photos", partition: int = 0) -> pa.Table:
    """Return keys of rows, as `Write.deleted` has them."""
    rows = [{"topic": topic, "partition": partition, "offset": one} for one in offsets]
    return pa.Table.from_pylist(rows, build_key_schema())
