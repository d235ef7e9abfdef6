"""Search the table itself: every embedding of a model is compared with the query."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from embedstream.follow.sql_text import quote_name, quote_text
from embedstream.follow.table_reader import list_rows, name_columns, select_batches
from embedstream.follow.tombstones import Tombstones, read_tombstones
from embedstream.index.stores.contract import Vector
from embedstream.search.answer import build_rows
from embedstream.search.where import Condition
from embedstream_core.errors import SetupError

__all__ = ["Position", "find_rows_at", "scan_table"]

Position = tuple[str, int, int]
"""A message's topic, partition and offset."""

_COLUMNS = ["topic", "partition", "offset", "key", "timestamp", "image_id", "uri", "attributes"]
_OPTIONAL = {"key": "BYTEA", "timestamp": "TIMESTAMP", "attributes": "STRING"}


def scan_table(
    opened: Any, vector: Vector, *, model_id: str, k: int, where: Condition | None = None
) -> pa.Table:
    """Return the k rows of a model with the greatest cosine similarity, the nearest first.

    Rows that a tombstone hides, and rows for which `where` is not true, are left out. Reads a
    version of the Delta table without Spark, one Arrow batch at a time; memory grows with k and
    with the number of deleted keys, not with the table.

    Raises:
        SetupError: the table cannot be read, or has no embedding of that model, or one of another
            dimension than the query's.
    """
    tombstones = read_tombstones(opened)
    unit = vector / max(float(np.linalg.norm(vector)), float(np.finfo(np.float32).tiny))
    nearest: list[tuple[float, int, dict[str, Any]]] = []
    order = count()
    for batch in select_batches(opened, _write_query(opened, model_id, where)):
        _check_dimension(batch, len(vector), table=opened.table_uri, model_id=model_id)
        for similarity, row in _list_nearest(batch, unit, tombstones):
            if len(nearest) < k:
                # Negative, so that of equal rows the first ones stay.
                heapq.heappush(nearest, (similarity, -next(order), row))
            elif similarity > nearest[0][0]:
                heapq.heapreplace(nearest, (similarity, -next(order), row))
            else:
                break
    if not nearest:
        _check_model(opened, model_id)
    return build_rows(
        {**row, "similarity": similarity, "model_id": model_id} for similarity, _, row in nearest
    )


def find_rows_at(opened: Any, position: Position) -> dict[str, Vector]:
    """Return the embeddings that a message has, by `model_id`.

    Raises:
        SetupError: the table has no row of it, or only failures, or its key was deleted.
    """
    topic, partition, offset = position
    condition = (
        f'topic = {quote_text(topic)} AND "partition" = {partition:d} AND "offset" = {offset:d}'
    )
    present = name_columns(opened)
    names = [one for one in ("key", "model_id", "embedding", "error") if one in present]
    columns = ", ".join(map(quote_name, names))
    rows = [
        row
        for batch in select_batches(opened, f"{columns} FROM outcomes WHERE {condition}")
        for row in batch.to_pylist()
    ]
    name = f"{topic}-{partition}-{offset}"
    if not rows:
        raise SetupError(
            f"the table '{opened.table_uri}' has no row of the message {name}; give the topic, "
            "partition and offset of one of its rows"
        )
    if any(read_tombstones(opened).hides(topic, partition, row.get("key"), offset) for row in rows):
        raise SetupError(f"the row {name} is deleted: a later message without a value has its key")
    found = {
        row["model_id"]: np.array(row["embedding"], np.float32)
        for row in rows
        if row["embedding"] is not None
    }
    if not found:
        errors = "; ".join(
            sorted({f"{row['error']['code']}: {row['error']['message']}" for row in rows})
        )
        raise SetupError(
            f"the row {name} is a failure and has no embedding ({errors}); choose another row"
        )
    return found


def _write_query(opened: Any, model_id: str, where: Condition | None) -> str:
    """Return a SELECT of a model's embeddings, with the columns that a condition and a row need.

    The condition is over the columns of an inner SELECT, which have the names of an index's.
    """
    # A table of an earlier version, or of another origin, can be searched without some columns.
    present = name_columns(opened)
    columns = [
        quote_name(name)
        if name in present
        else f"CAST(NULL AS {_OPTIONAL[name]}) AS {quote_name(name)}"
        for name in _COLUMNS
        if name in present or name in _OPTIONAL
    ]
    has_media = "media" in present
    for name, key, kind in (
        ("media_type", "type", "STRING"),
        ("duration_s", "duration_s", "DOUBLE"),
    ):
        source = f"media['{key}']" if has_media else f"CAST(NULL AS {kind})"
        columns.append(f"{source} AS {name}")
    inner = [*columns, "embedding"]
    condition = "TRUE"
    if where is not None:
        names = {one: f"attribute_{index}" for index, one in enumerate(where.attributes)}
        for one, name in names.items():
            has_any = "attributes" in present
            source = f"attributes[{quote_text(one)}]" if has_any else "CAST(NULL AS STRING)"
            inner.append(f"{source} AS {name}")
        condition = where.render("datafusion", attribute_columns=names)
    outer = ", ".join([*map(quote_name, [*_COLUMNS, "media_type", "duration_s"]), "embedding"])
    rows = f"embedding IS NOT NULL AND model_id = {quote_text(model_id)}"
    # Names and texts are quoted, and a condition was checked and written by `where`.
    source = f"SELECT {', '.join(inner)} FROM outcomes WHERE {rows}"  # noqa: S608
    return f"{outer} FROM ({source}) WHERE {condition}"


def _list_nearest(
    batch: Any, unit: Vector, tombstones: Tombstones
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield the rows of an Arrow batch that are not hidden, the nearest first."""
    flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(batch.num_rows, -1)
    # A vector of zeros has no direction: its cosine with any other is taken as 0.
    norms = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
    similarities = vectors @ unit / norms
    others = batch.drop_columns(["embedding"])
    for index in np.argsort(-similarities, kind="stable"):
        # Not `take`: pyarrow has none for string views, which deltalake returns.
        (row,) = list_rows(others.slice(index, 1))
        if not tombstones.hides(row["topic"], row["partition"], row.pop("key"), row["offset"]):
            yield float(similarities[index]), row


def _check_dimension(batch: Any, dimension: int, *, table: str, model_id: str) -> None:
    lengths = batch.column("embedding").value_lengths().unique().to_pylist()
    if others := [length for length in lengths if length != dimension]:
        raise SetupError(
            f"the query's embedding has {dimension} floats, and the table '{table}' has rows of "
            f"'{model_id}' with {others[0]}: only embeddings of one dimension can be compared; "
            "search with the model that made the rows, or delete those that it did not make"
        )


def _check_model(opened: Any, model_id: str) -> None:
    """Raise SetupError if the table has no embedding of a model; name the models that it has."""
    query = "DISTINCT model_id FROM outcomes WHERE embedding IS NOT NULL"
    models = {name for batch in select_batches(opened, query) for name in batch[0].to_pylist()}
    if model_id not in models:
        names = ", ".join(f"'{name}'" for name in sorted(models))
        known = f"those of {names} (--model-id)" if names else "none at all yet"
        raise SetupError(
            f"the table '{opened.table_uri}' holds no embedding of '{model_id}'; it holds {known}"
        )
