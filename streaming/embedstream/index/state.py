"""What an index knows of itself: the table that it follows, how far, and its collections.

The state is stored inside the index, and is replaced together with the rows that it describes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["Ann", "Collection", "FullPass", "IndexState", "Partial"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ann(_Part):
    """The approximate index of a collection, as it was when it was built.

    `recall` is the mean share of the ten nearest rows that a search with `effort` found of the ten
    that an exact search found, over `queries` sampled rows.
    """

    kind: str
    """Such as `IVF_PQ` or `HNSW`."""
    parameters: Mapping[str, int]
    effort: int
    """How far a search looks: partitions to probe, or candidates to keep."""
    recall: float
    queries: int
    rows: int
    """The rows of the collection when it was built."""
    build_s: float


class Collection(_Part):
    """The rows of one model. `name` is the table in the index that holds them."""

    name: str
    dimension: int
    ann: Ann | None = None


class Partial(_Part):
    """How much of a version of the table is in the index, where it is too much for one write.

    `files_done` counts the files, in the order of their paths in a full pass and as the log lists
    them in a commit; `rows_done` counts the rows of the next one.
    """

    version: int
    files_done: int = 0
    rows_done: int = 0


class FullPass(Partial):
    """A pass over a whole version of the table that has not ended; it fills collections of its own.

    `table_id` and `attributes` are those of the new collections; `reason` says why it began.
    """

    table_id: str
    commit_sha256: str | None
    attributes: tuple[str, ...]
    reason: str
    collections: Mapping[str, Collection] = {}


class IndexState(_Part):
    """All that an index knows of itself; collections are by `model_id`.

    `version` is the version of the table whose rows the collections hold; None until the first full
    pass has ended. `generation` counts the full passes: each makes collections of new names.
    """

    format: Literal[1] = 1
    table: str
    table_id: str
    """Delta's id of the table, which a table has that is created again at the same path."""
    attributes: tuple[str, ...] = ()
    generation: int = 0
    version: int | None = None
    commit_sha256: str | None = None
    """Of the log's entry of `version`: a table that was restored from a copy has another one."""
    partial: Partial | None = None
    """The part of the next commit that is in the collections already."""
    collections: Mapping[str, Collection] = {}
    full_pass: FullPass | None = None
