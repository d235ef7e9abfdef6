"""Tables of outcomes, written without Spark."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from embedstream.table.rows import OUTCOME_ARROW_SCHEMA as SCHEMA

__all__ = ["MODEL", "SCHEMA", "row", "write_table"]

MODEL = "resnet50/IMAGENET1K_V2/11ad3fa6f4b5"


def row(
    image_id: str,
    vector: Iterable[float] | None,
    *,
    uri: str | None = None,
    offset: int = 0,
    model_id: str = MODEL,
) -> dict[str, Any]:
    """An outcome; without a vector, a failure."""
    error = {"code": "image_corrupt", "stage": "decode", "message": "cut short"}
    return {
        "topic": "images",
        "partition": 0,
        "offset": offset,
        "image_id": image_id,
        "uri": uri,
        "embedding": None if vector is None else list(vector),
        "error": error if vector is None else None,
        "model_id": model_id,
    }


def write_table(
    folder: Path, *parts: Iterable[dict[str, Any]], model_id: str | None = MODEL
) -> str:
    """A table of outcomes, appended to part by part."""
    table = str(folder / "table")
    for rows in parts:
        write_deltalake(table, pa.Table.from_pylist(list(rows), schema=SCHEMA), mode="append")
    if model_id is not None:
        # Properties of one's own are refused by write_deltalake, but not here.
        DeltaTable(table).alter.set_table_properties(
            {"embedstream.model_id": model_id}, raise_if_not_exists=False
        )
    return table
