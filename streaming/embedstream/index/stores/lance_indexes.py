"""The indexes of a large collection in LanceDB.

Their kind and parameters were chosen by measuring: docs/decisions/0026-approximate-index.md.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from embedstream.index.stores.lance_queries import EMBEDDING

__all__ = [
    "ANN_INDEX",
    "KEEP_ALL",
    "count_partitions",
    "count_segments",
    "create_indexes",
    "list_efforts",
]

ANN_INDEX = "embedding_ann"
"""The name of the approximate index in each collection."""

KEEP_ALL = timedelta(days=36_500)
"""An age that no version has."""

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
    # The first `optimize` after a build rewrites the index, even if there are no new rows: 1.3 s of
    # CPU time over 60,000 x 384 floats, and 0.05 s for each later one. Here nobody waits for it.
    table.optimize(cleanup_older_than=KEEP_ALL)


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
