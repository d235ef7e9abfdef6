"""Search the table itself: every embedding of a model is compared with the query."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from embedstream.index.table_reader import open_table, select_batches
from embedstream.search.queries import Vector
from embedstream_core.errors import SetupError

__all__ = ["Neighbour", "find_nearest"]

_COLUMNS = ["embedding", "image_id", "uri", "topic", "partition", "offset"]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row near the query. `similarity` is the cosine, from -1 to 1.

    `media_type` and `duration_s` are those of the column `media`.
    """

    similarity: float
    image_id: str
    uri: str | None
    topic: str
    partition: int
    offset: int
    media_type: str | None = None
    duration_s: float | None = None


def find_nearest(table: str, query: Vector, *, model_id: str, k: int) -> list[Neighbour]:
    """Return the k rows of a model with the greatest cosine similarity, the nearest first.

    Reads the Delta table without Spark, one Arrow batch at a time; memory does not grow with the
    table.

    Raises:
        SetupError: the table cannot be read, or has no embedding of that model, or one of another
            dimension than the query's.
    """
    opened = open_table(table)
    columns = ", ".join(f'"{name}"' for name in _COLUMNS)
    # A table of an earlier version has no such column, and can be searched.
    if any(field.name == "media" for field in opened.schema().fields):
        columns += ", media['type'] AS media_type, media['duration_s'] AS duration_s"
    escaped = model_id.replace("'", "''")
    condition = f"embedding IS NOT NULL AND model_id = '{escaped}'"
    unit = query / np.linalg.norm(query)
    found: list[Neighbour] = []
    for batch in select_batches(opened, f"{columns} FROM outcomes WHERE {condition}"):
        lengths = batch.column("embedding").value_lengths().unique().to_pylist()
        if others := [length for length in lengths if length != len(query)]:
            raise SetupError(
                f"the query's embedding has {len(query)} floats, and the table '{table}' has rows "
                f"of '{model_id}' with {others[0]}: only embeddings of one dimension can be "
                "compared; search with the model that made the rows, or delete those that it did "
                "not make"
            )
        candidates = [*found, *_find_in_batch(batch, unit, k)]
        found = heapq.nlargest(k, candidates, key=attrgetter("similarity"))
    if not found:
        models = select_batches(
            opened, "DISTINCT model_id FROM outcomes WHERE embedding IS NOT NULL"
        )
        names = sorted(f"'{name}'" for batch in models for name in batch.column(0).to_pylist())
        known = f"those of {', '.join(names)} (--model-id)" if names else "none at all yet"
        raise SetupError(
            f"the table '{table}' holds no embedding of '{model_id}'; it holds {known}"
        )
    return found


def _find_in_batch(batch: Any, unit: Vector, k: int) -> list[Neighbour]:
    """Return the rows of an Arrow batch that are nearest to a vector of length 1."""
    flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(batch.num_rows, -1)
    # A vector of zeros has no direction: its cosine with any other is taken as 0.
    norms = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
    similarities = vectors @ unit / norms
    others = batch.drop_columns(["embedding"])
    # Not `take`: pyarrow has none for string views, which deltalake returns.
    return [
        Neighbour(similarity=float(similarities[index]), **others.slice(index, 1).to_pylist()[0])
        for index in np.argsort(-similarities, kind="stable")[:k]
    ]
