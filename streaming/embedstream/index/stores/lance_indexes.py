"""The indexes of a large collection in LanceDB.

Their kind and parameters were chosen by measuring: docs/decisions/0026-approximate-index.md.
"""

from __future__ import annotations

import math
from typing import Any

from embedstream.index.stores.lance_queries import EMBEDDING

__all__ = ["ANN_INDEX", "count_partitions", "count_segments", "create_indexes", "list_efforts"]

ANN_INDEX = "embedding_ann"
"""The name of the approximate index in each collection."""

_PROBES = (5, 10, 20, 40, 80, 160, 320, 640)


def create_indexes(table: Any, rows: int) -> None:
    """Build the approximate index of a collection of so many rows, and those of its keys.

    Without the latter, each deletion reads a column: over 1,000,000 rows, 100 keys took 41 ms of
    CPU time and with them 17, 100 message keys 85 and 33. They are built in 0.3 s.
    """
    from lancedb.index import BTree, IvfSq

    for column in ("offset", "message_key"):
        table.create_index(column, config=BTree(), replace=True)
    vectors = IvfSq(distance_type="cosine", num_partitions=count_partitions(rows))
    table.create_index(EMBEDDING, config=vectors, replace=True, name=ANN_INDEX)


def count_partitions(rows: int) -> int:
    """Return the number of partitions: the square root of the rows, LanceDB's own default."""
    return max(1, math.isqrt(rows))


def list_efforts(rows: int) -> list[int]:
    """Return the numbers of partitions that a search may probe; each step is twice the work."""
    partitions = count_partitions(rows)
    return [*(one for one in _PROBES if one < partitions), partitions]


def count_segments(table: Any) -> int:
    """Return the number of segments of the approximate index; 0 if there is none."""
    stats = table.index_stats(ANN_INDEX)
    return 0 if stats is None else int(stats.num_indices or 0)
