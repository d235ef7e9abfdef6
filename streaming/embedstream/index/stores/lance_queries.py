"""What is asked of the Lance table that holds a collection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot.errors import TokenError

from embedstream.follow.sql_text import quote_text
from embedstream.index.rows import KEY
from embedstream.index.stores.contract import Vector, Write
from embedstream_core.errors import SetupError, explain

__all__ = [
    "DIALECT",
    "EMBEDDING",
    "REFINE_FACTOR",
    "list_delete_conditions",
    "match_offsets",
    "search_rows",
    "stack_vectors",
]

# Lance evaluates conditions with DataFusion, which sqlglot does not name: as in Druid, a string has
# no escapes but '', names are quoted by ", and the type of a text is STRING.
DIALECT = "druid"

EMBEDDING = "embedding"
_DISTANCE = "_distance"
_SIMILARITY = "similarity"

REFINE_FACTOR = 4
"""An approximate search compares this many times k candidates by their full vectors.

Measured over 1,000,000 vectors of 384 floats: recall@10 is 0.97 without, 0.999 from 2 on.
"""

_KEYS_PER_CONDITION = 10_000


def search_rows(
    table: Any, vector: Vector, k: int, *, where: str | None, effort: int | None
) -> pa.Table:
    """Return the k nearest rows of a Lance table; see `Store.search`.

    Raises:
        SetupError: the condition cannot be evaluated, or the vector has another dimension.
    """
    dimension = table.schema.field(EMBEDDING).type.list_size
    if vector.shape != (dimension,):
        raise SetupError(
            f"the vector has {vector.size} dimensions, those of the collection {dimension}"
        )
    if where is not None:
        _check_statement(where)
    try:
        if not vector.any():
            query = table.search().select(_list_columns(table))
            found = _filter(query, where).limit(k).to_arrow()
            return _append_similarity(found, np.zeros(len(found), np.float32))
        found = _search_vectors(table, vector, k, where=where, effort=effort)
        return found if effort is not None else _add_zeros(table, found, k, where=where)
    except ValueError as error:
        if where is None:
            raise
        raise SetupError(
            f'the condition "{where}" cannot be evaluated: {explain(error)}'
        ) from error


def list_delete_conditions(table: Any, write: Write) -> Iterator[str]:
    """Yield the conditions of the rows that a write deletes or replaces."""
    if write.deleted is not None:
        yield from _match_keys(write.deleted)
    if write.deleted_keys is not None:
        for start in range(0, len(write.deleted_keys), _KEYS_PER_CONDITION):
            part = write.deleted_keys.slice(start, _KEYS_PER_CONDITION)
            yield from _match_keys(_find_earlier(table, part))
    if write.rows is not None and write.mode == "upsert":
        yield from _match_keys(write.rows.select([*KEY]))


def match_offsets(topic: str, partition: int, offsets: Sequence[int]) -> str:
    """Return the condition of rows by their key."""
    numbers = ", ".join(map(str, offsets))
    return f"topic = {quote_text(topic)} AND partition = {partition} AND offset IN ({numbers})"


def stack_vectors(rows: pa.Table) -> npt.NDArray[np.float32]:
    """Return the embeddings of rows, of shape (rows, dimension)."""
    column = rows.column(EMBEDDING).combine_chunks()
    flat: npt.NDArray[np.float32] = column.flatten().to_numpy()
    return flat.reshape(len(rows), column.type.list_size)


def _search_vectors(
    table: Any, vector: Vector, k: int, *, where: str | None, effort: int | None
) -> pa.Table:
    def build_query() -> Any:
        query = table.search(vector, vector_column_name=EMBEDDING).distance_type("cosine")
        return _filter(query, where).limit(k).select([*_list_columns(table), _DISTANCE])

    if effort is None:
        found = build_query().bypass_vector_index().to_arrow()
    else:
        found = build_query().nprobes(effort).refine_factor(REFINE_FACTOR).to_arrow()
        if len(found) < k:
            # These partitions hold too few rows: the search goes on in others. Allowing that from
            # the start took twice the time.
            further = build_query().minimum_nprobes(effort).maximum_nprobes(0)
            found = further.refine_factor(REFINE_FACTOR).to_arrow()
    similarity = 1 - found.column(_DISTANCE).to_numpy()
    return _append_similarity(found.drop_columns([_DISTANCE]), similarity)


def _add_zeros(table: Any, found: pa.Table, k: int, *, where: str | None) -> pa.Table:
    """Add rows whose vectors are zeros: Lance leaves them out, for their cosine is not a number."""
    if len(found) == k and pc.min(found.column(_SIMILARITY)).as_py() >= 0:
        return found
    if len(found) < k and len(found) == table.count_rows(where):
        return found
    columns = _list_columns(table)
    batches = _filter(table.search().select([*columns, EMBEDDING]), where).to_batches()
    parts = [found]
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        zeros = rows.filter(pa.array(~stack_vectors(rows).any(axis=1))).select(columns)
        parts.append(_append_similarity(zeros, np.zeros(len(zeros), np.float32)))
        if sum(map(len, parts[1:])) >= k:
            break
    return pa.concat_tables(parts).sort_by([(_SIMILARITY, "descending")]).slice(0, k)


def _append_similarity(rows: pa.Table, similarity: npt.NDArray[np.float32]) -> pa.Table:
    return rows.append_column(_SIMILARITY, pa.array(similarity, pa.float32()))


def _check_statement(where: str) -> None:
    """Refuse a second statement, which DataFusion's parser ignores with all that follows."""
    try:
        tokens = sqlglot.tokenize(where, dialect=DIALECT)
    except TokenError as error:
        raise SetupError(f'the condition "{where}" cannot be read: {error}') from error
    if any(token.token_type is sqlglot.TokenType.SEMICOLON for token in tokens):
        raise SetupError(f'the condition "{where}" has a semicolon: write one condition')


def _list_columns(table: Any) -> list[str]:
    return [name for name in table.schema.names if name != EMBEDDING]


def _filter(query: Any, where: str | None) -> Any:
    return query if where is None else query.where(where)


def _find_earlier(table: Any, keys: pa.Table) -> pa.Table:
    """Return the keys of rows that have one of these message keys and a smaller offset."""
    by = ["topic", "partition", "message_key"]
    limits = keys.group_by(by).aggregate([("offset", "max")])
    quoted = ", ".join(quote_text(one) for one in pc.unique(keys.column("message_key")).to_pylist())
    query = table.search().where(f"message_key IN ({quoted})").select([*KEY, "message_key"])
    found = query.to_arrow().join(limits, keys=by, join_type="inner")
    return found.filter(pc.field("offset") < pc.field("offset_max")).select([*KEY])


def _match_keys(keys: pa.Table) -> Iterator[str]:
    """Yield conditions that together match the rows of these keys."""
    groups = keys.group_by(["topic", "partition"]).aggregate([("offset", "list")])
    for group in groups.to_pylist():
        offsets = group["offset_list"]
        for start in range(0, len(offsets), _KEYS_PER_CONDITION):
            part = offsets[start : start + _KEYS_PER_CONDITION]
            yield match_offsets(group["topic"], group["partition"], part)
