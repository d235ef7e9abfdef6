"""What an index needs of the store that keeps it.

A store keeps collections, which are tables of rows of `build_row_schema`, and one text, the state.
One process writes, any number reads. `Store.write` is a transaction: after a crash at any point,
the next writer finds either all of its effects or none. The contract test runs on every kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstream_core.errors import SetupError

__all__ = ["READ_ROWS", "AnnIndex", "Store", "StoreUnavailable", "StoreWriter", "Vector", "Write"]

Vector = npt.NDArray[np.float32]
"""Of shape (dimension,)."""

READ_ROWS = 8192
"""The rows of a part that `read_vectors` yields."""


class StoreUnavailable(SetupError):
    """The store's server cannot be reached, or cannot do it now: the same may succeed later.

    A writer that raises it may have lost its lock: close it, and open the store again.
    """


@dataclass(frozen=True, slots=True)
class Write:
    """What one transaction does to one collection: first delete, then insert.

    `collection` is created if it does not exist and there is a table of `rows`, even an empty one.
    `rows` has the schema of `build_row_schema` and no two rows of one key. With `append` no row of
    these keys is there; with `upsert` rows of equal keys are replaced. `deleted` has the columns of
    `KEY`. `deleted_keys` has `topic`, `partition`, `message_key` and `offset`: of rows with that
    message key, those with a smaller offset are deleted.
    """

    collection: str
    dimension: int
    rows: pa.Table | None = None
    mode: Literal["append", "upsert"] = "append"
    deleted: pa.Table | None = None
    deleted_keys: pa.Table | None = None


@dataclass(frozen=True, slots=True)
class AnnIndex:
    """An approximate index that a store has built.

    `efforts` are the values of `effort` worth trying in a search, the cheapest first.
    """

    kind: str
    parameters: Mapping[str, int]
    efforts: Sequence[int]


class Store(Protocol):
    """A store, open for reading."""

    def read_state(self) -> str | None:
        """Return the state that was last written; None if there is no index yet.

        Raises:
            SetupError: the store cannot be reached, or holds something else.
        """

    def count_rows(self, collection: str) -> int:
        """Return the number of rows of a collection."""

    def search(
        self,
        collection: str,
        vector: Vector,
        k: int,
        *,
        where: str | None = None,
        effort: int | None = None,
    ) -> pa.Table:
        """Return the k rows with the greatest cosine similarity, the nearest first.

        All columns of the collection but `embedding`, and `similarity`, float32. With an `effort`
        the approximate index is used; without one every row is compared. `where` is a condition in
        the store's dialect of SQL, `dialect`, over the collection's columns; k rows that satisfy
        it are returned if there are so many. A vector of zeros has the similarity 0 to any other,
        and may be missing from an approximate search.

        Raises:
            SetupError: the condition cannot be evaluated.
        """

    def get_vector(
        self, collection: str, *, topic: str, partition: int, offset: int
    ) -> Vector | None:
        """Return the embedding of a row; None if there is no such row."""

    def sample(self, collection: str, count: int) -> npt.NDArray[np.float32]:
        """Return embeddings of rows spread over the collection, of shape (count, dimension)."""

    def list_keys(self, collection: str) -> pa.Table:
        """Return the columns of `KEY` of all rows, in any order: for checks of a whole index."""

    def close(self) -> None:
        """Release what the store holds."""

    @property
    def dialect(self) -> str:
        """Sqlglot's name of the dialect of `where`."""

    @property
    def address(self) -> str:
        """Where the index is, without secrets, for messages."""


class StoreWriter(Store, Protocol):
    """A store, open for the only writer."""

    def write(self, writes: Sequence[Write], state: str) -> None:
        """Do all writes and replace the state, or do nothing.

        Raises:
            SetupError: another writer has changed the index, or the store refuses the data.
        """

    def drop(self, collections: Sequence[str]) -> None:
        """Delete collections that no state names any more; one that does not exist is ignored."""

    def read_vectors(self, collection: str) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
        """Yield all rows in parts and in any order: the columns of `KEY`, and the embeddings.

        The embeddings are of shape (rows of the part, dimension). Memory does not grow with the
        collection. Nothing may be written until the last part has been read.
        """

    def list_collections(self) -> list[str]:
        """Return the names of all collections that exist."""

    def build_ann(self, collection: str, *, rows: int, dimension: int) -> AnnIndex | None:
        """Build the approximate index, or replace it; return None if the dimension has none."""

    def maintain(self, collections: Sequence[str]) -> None:
        """Merge small files, add new rows to the approximate index, delete old versions."""
