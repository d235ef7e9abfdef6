"""The index of a table, as a search uses it: whether it can answer, and its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa
from pydantic import ValidationError

from embedstream.config.locations import find_local_path
from embedstream.config.sections import IndexConfig
from embedstream.follow.table_reader import list_rows
from embedstream.index.rows import name_attribute_column
from embedstream.index.state import IndexState
from embedstream.index.stores.contract import Store, Vector
from embedstream.index.stores.kinds import open_store
from embedstream.index.stores.lance_location import choose_location
from embedstream.search.answer import build_rows
from embedstream.search.scan import Position
from embedstream.search.where import Condition, Dialect
from embedstream_core.errors import EmbedstreamError, MissingExtra, SetupError

__all__ = ["IndexReader", "IndexUnusable"]


class IndexUnusable(EmbedstreamError):
    """The index cannot answer; `reason` is empty if there is none."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


class IndexReader:
    """The index of a table. It is opened when it is first needed, and again after an error."""

    def __init__(self, config: IndexConfig, *, table: str) -> None:
        self._config = config
        self._table = table
        self._store: Store | None = None
        self.address = ""
        """Where the index is, without secrets, once it was opened."""

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def read_state(self, table_id: str) -> IndexState:
        """Return the state of the index as it is now, if it is of the table with that id.

        Raises:
            IndexUnusable: there is no index, or it cannot be read, or has no rows of this
                table yet.
        """
        with self._use_store() as store:
            text = store.read_state()
        if text is None:
            raise IndexUnusable
        try:
            state = IndexState.model_validate_json(text)
        except ValidationError:
            raise IndexUnusable(
                f"the index at {self.address} was written by another version of embedstream"
            ) from None
        if state.table_id != table_id:
            raise IndexUnusable(f"the index at {self.address} is of another table, '{state.table}'")
        if state.version is None:
            raise IndexUnusable(f"the first pass of the index at {self.address} has not ended")
        return state

    def search(
        self,
        state: IndexState,
        vector: Vector,
        *,
        model_id: str,
        k: int,
        where: Condition | None,
        exact: bool,
    ) -> pa.Table:
        """Return the k nearest rows of a model in the columns of `ANSWER_SCHEMA`.

        Raises:
            IndexUnusable: the index does not have what the search needs, or the store failed.
        """
        if (collection := state.collections.get(model_id)) is None:
            raise IndexUnusable(f"the index at {self.address} has no rows of '{model_id}'")
        if collection.dimension != len(vector):
            raise IndexUnusable(
                f"the index at {self.address} has vectors of {collection.dimension} floats"
            )
        missing = sorted({*(where.attributes if where else ())} - {*state.attributes})
        if missing:
            raise IndexUnusable(
                f"the index at {self.address} has no attribute {', '.join(map(repr, missing))}; "
                "add it to index.attributes"
            )
        columns = {name: name_attribute_column(name) for name in state.attributes}
        effort = None if exact or collection.ann is None else collection.ann.effort
        with self._use_store() as store:
            dialect: Dialect = "postgres" if store.dialect == "postgres" else "datafusion"
            condition = where.render(dialect, attribute_columns=columns) if where else None
            found = store.search(collection.name, vector, k, where=condition, effort=effort)
        return _convert_rows(found, model_id=model_id, attributes=columns)

    def find_rows_at(self, state: IndexState, position: Position) -> dict[str, Vector]:
        """Return the embeddings that a message has in the index, by `model_id`.

        Raises:
            IndexUnusable: the store failed.
        """
        topic, partition, offset = position
        found: dict[str, Vector] = {}
        with self._use_store() as store:
            for model_id, collection in state.collections.items():
                vector = store.get_vector(
                    collection.name, topic=topic, partition=partition, offset=offset
                )
                if vector is not None:
                    found[model_id] = vector
        return found

    @contextmanager
    def _use_store(self) -> Iterator[Store]:
        """Yield the open store; close it after an error, so that the next use opens it again.

        Raises:
            IndexUnusable: for the errors of the store.
        """
        try:
            if self._store is None:
                if self._is_absent():
                    raise IndexUnusable
                self._store = open_store(self._config, table=self._table, mode="read")
                self.address = self._store.address
            yield self._store
        except MissingExtra as error:
            raise IndexUnusable(str(error)) from error
        except SetupError as error:
            self.close()
            raise IndexUnusable(str(error)) from error

    def _is_absent(self) -> bool:
        """Return whether there is no index: known without its packages for a local folder only.

        To import LanceDB takes more than a second.
        """
        folder = find_local_path(choose_location(self._config.path, table=self._table))
        return self._config.kind == "lancedb" and folder is not None and not folder.is_dir()


def _convert_rows(found: pa.Table, *, model_id: str, attributes: Mapping[str, str]) -> pa.Table:
    """Return rows of a store in the columns of `ANSWER_SCHEMA`."""
    rows = []
    for row in list_rows(found):
        named = {name: row[column] for name, column in attributes.items()}
        kept = [(name, value) for name, value in named.items() if value is not None]
        rows.append({**row, "model_id": model_id, "attributes": kept})
    return build_rows(rows)
