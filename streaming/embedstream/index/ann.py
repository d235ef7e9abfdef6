"""Decide when a collection needs an approximate index, build it, and measure what it finds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstream.index.rows import KEY
from embedstream.index.state import Ann
from embedstream.index.stores.contract import Store, StoreWriter, Vector

__all__ = ["build_ann", "is_ann_due", "measure_recall"]

_log = logging.getLogger(__name__)

Key: TypeAlias = tuple[str, int, int]

_TARGET_RECALL = 0.95
_K = 10

_QUERIES = 100
"""With so many, the standard error of a recall of 0.95 is 0.01 or less."""

_EQUAL = 1e-6
"""Similarities of float32 vectors that differ by less are equal."""


def is_ann_due(ann: Ann | None, *, rows: int, ann_rows: int) -> bool:
    """Return whether a collection of so many rows needs an approximate index, or a larger one.

    An index keeps its partitions while rows are added. Twice the rows are twice the work of a
    search, and may lie elsewhere than those that the partitions were made for.
    """
    return rows >= ann_rows and (ann is None or rows >= 2 * ann.rows)


def build_ann(store: StoreWriter, collection: str, *, rows: int, dimension: int) -> Ann | None:
    """Build the approximate index of a collection, and choose how far a search looks.

    That is the smallest effort with a recall@10 of 0.95, or the best one if none reaches it.
    Returns None if vectors of that dimension have no approximate index in this kind of store.
    """
    start = time.perf_counter()
    built = store.build_ann(collection, rows=rows, dimension=dimension)
    if built is None:
        return None
    build_s = time.perf_counter() - start
    queries = store.sample(collection, _QUERIES)
    # Zeros are as near to any row as to any other.
    queries = queries[queries.any(axis=1)]
    recall, effort = -1.0, 0
    recalls = measure_recall(store, collection, queries, efforts=built.efforts)
    for one, measured in zip(built.efforts, recalls, strict=True):
        if measured > recall:
            recall, effort = measured, one
        if recall >= _TARGET_RECALL:
            break
    if recall < _TARGET_RECALL:
        _log.warning(
            "the approximate index of '%s' finds %.0f %% of the nearest rows: set index.ann_rows "
            "above %d for exact search",
            collection,
            100 * recall,
            rows,
        )
    return Ann(
        kind=built.kind,
        parameters=built.parameters,
        effort=effort,
        recall=recall,
        queries=len(queries),
        rows=rows,
        build_s=build_s,
    )


def measure_recall(
    store: StoreWriter, collection: str, queries: npt.NDArray[np.float32], *, efforts: Sequence[int]
) -> Iterator[float]:
    """Yield the recall@10 of a search for each effort, as the caller asks for the next one.

    `queries` are embeddings of rows of the collection, none of them zeros, of shape (queries,
    dimension). A query's own row is left out; a row that is as near as the tenth counts like it.
    """
    nearest = _find_nearest(store, collection, queries)
    for effort in efforts:
        hits = [
            len(_search_others(store, collection, query, near, effort=effort) & near.keys)
            for query, near in zip(queries, nearest, strict=True)
        ]
        wanted = sum(near.count for near in nearest)
        yield sum(hits) / wanted if wanted else 1.0


@dataclass(frozen=True, slots=True)
class _Nearest:
    """What an exact search has found: the query's own row, and those that an answer may name.

    An answer has `count` rows; `keys` are more where several are as near as the last one.
    """

    own: Key
    keys: frozenset[Key]
    count: int


def _find_nearest(
    store: StoreWriter, collection: str, queries: npt.NDArray[np.float32]
) -> list[_Nearest]:
    """Find the nearest rows of all queries exactly, in one pass over the collection.

    A search for each query would read the collection as often.
    """
    units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    best = np.full((len(queries), 1 + _K), -np.inf, np.float32)
    found: list[list[tuple[float, Key]]] = [[] for _ in queries]
    for keys, vectors in store.read_vectors(collection):
        norms = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
        similarities = units @ vectors.T / norms
        merged = np.concatenate([best, similarities], axis=1)
        best = np.partition(merged, -(1 + _K), axis=1)[:, -(1 + _K) :]
        query_numbers, rows = np.nonzero(similarities >= best[:, :1] - _EQUAL)
        picked, places = np.unique(rows, return_inverse=True)
        named = _list_keys(keys.take(pa.array(picked)))
        for query, row, place in zip(query_numbers, rows, places, strict=True):
            found[query].append((float(similarities[query, row]), named[place]))
    return [_choose_nearest(sorted(one, reverse=True)) for one in found]


def _choose_nearest(found: Sequence[tuple[float, Key]]) -> _Nearest:
    """Return what an answer may name of rows in the order of their similarity."""
    (_, own), *others = found
    count = min(_K, len(others))
    if not count:
        return _Nearest(own, frozenset(), 0)
    least = others[count - 1][0] - _EQUAL
    return _Nearest(own, frozenset(key for near, key in others if near >= least), count)


def _search_others(
    store: Store, collection: str, query: Vector, nearest: _Nearest, *, effort: int
) -> frozenset[Key]:
    found = _list_keys(store.search(collection, query, 1 + nearest.count, effort=effort))
    return frozenset([key for key in found if key != nearest.own][: nearest.count])


def _list_keys(rows: pa.Table) -> list[Key]:
    return list(zip(*(rows.column(name).to_pylist() for name in KEY), strict=True))
