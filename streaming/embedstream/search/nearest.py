"""Search a table of embeddings through its index, or by comparing all of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedstream.config.load import load_config
from embedstream.config.sections import BulkFilesConfig, IndexConfig, StreamConfig
from embedstream.follow.table_reader import list_models, open_table, refresh_table
from embedstream.index.state import IndexState
from embedstream.index.stores.contract import Vector
from embedstream.search.answer import Answer
from embedstream.search.indexes import IndexReader, IndexUnusable
from embedstream.search.scan import Position, find_rows_at, scan_table
from embedstream.search.where import Condition, parse_where
from embedstream.table.lookup import find_table
from embedstream_core.errors import SetupError
from embedstream_core.settings import Isolation

if TYPE_CHECKING:
    from embedstream.search.queries import QueryEmbedder

__all__ = ["Config", "Query", "Searcher", "nearest", "read_query_file"]

Query = Path | bytes | str | Position | Sequence[float] | npt.NDArray[Any]
"""A file, its bytes, words, a message's topic, partition and offset, or a vector."""

# Beyond all limits of decoding that make sense; a device such as /dev/zero never ends.
_MAX_QUERY_BYTES = 2**28

Config = StreamConfig | BulkFilesConfig | Path
"""A configuration, or the YAML file of a stream's."""


def nearest(
    query: Query,
    table: str | Path | None = None,
    *,
    k: int = 10,
    where: str | None = None,
    model_id: str | None = None,
    weights: str | None = None,
    config: Config | None = None,
    exact: bool = False,
) -> pa.Table:
    """Return the k rows of a table that are nearest to a query, the nearest first.

    Needs neither Spark nor a JVM. To search repeatedly, keep a `Searcher` open.

    Args:
        query: A file or its bytes (an image, audio or a text), words, the topic, partition and
            offset of a row, or a vector of the table's dimension.
        table: The Delta table; by default that of `config`.
        k: How many rows.
        where: A condition that the rows satisfy, such as `attributes['shop'] = 'a' AND timestamp >
            '2026-01-01'`; docs/search.md lists the columns.
        model_id: The model whose rows are searched; by default the only one that embeds the query.
        weights: The file or folder that the model's weights came from, if the table cannot say.
        config: The configuration that made the rows. It says where the index is, and how images are
            prepared for a model with a preprocessing of its own.
        exact: Whether every row is compared even where there is an approximate index.

    Returns:
        The columns similarity (float32, the cosine), topic, partition, offset, model_id, image_id,
        uri, media_type, duration_s, timestamp and attributes (a map). Rows that come from the index
        have the attributes of `index.attributes` only.

    Raises:
        SetupError: the table cannot be read, the condition or the query cannot be used, or the
            table has no rows of the model.
    """
    with Searcher(table, config=config) as searcher:
        return searcher.search(
            query, k=k, where=where, model_id=model_id, weights=weights, exact=exact
        ).rows


class Searcher:
    """A table that is open for searches, with its index and the models of its queries.

    Each search sees the newest version of the table and of the index. Use it from one thread at a
    time, and close it or use it as a context manager.
    """

    def __init__(
        self,
        table: str | Path | None = None,
        *,
        config: Config | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        """Open a table; the index and the models are opened when they are needed.

        Queries are decoded as the configuration says. With `isolation` that is in a child process
        within these limits.

        Raises:
            SetupError: neither a table nor a configuration is given, or it cannot be read.
        """
        settings = load_config(config) if isinstance(config, Path) else config
        if table is None and settings is None:
            raise SetupError("give the table or the configuration that names it")
        if table is None and settings is not None:
            settings = find_table(settings)
            table = settings.table.path
        self.table = str(table)
        self._encoders = () if settings is None else settings.all_encoders
        self._decode_settings = settings.decode.settings if settings else None
        self._isolation = isolation
        self._opened = open_table(self.table)
        self._index = IndexReader(settings.index if settings else IndexConfig(), table=self.table)
        self._embedder: QueryEmbedder | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def search(
        self,
        query: Query,
        *,
        k: int = 10,
        where: str | None = None,
        model_id: str | None = None,
        weights: str | None = None,
        exact: bool = False,
    ) -> Answer:
        """Return the k rows nearest to a query, and what they were found in; see `nearest`."""
        if k < 1:
            raise SetupError(f"k is the number of rows, at least 1, not {k}")
        condition = None if where is None else parse_where(where)
        refresh_table(self._opened)
        state, unused = self._read_state()
        model, vector = self._read_query(query, state, model_id=model_id, weights=weights)
        if state is not None:
            try:
                return self._ask_index(state, vector, model, k=k, where=condition, exact=exact)
            except IndexUnusable as error:
                unused = error.reason
        rows = scan_table(self._opened, vector, model_id=model, k=k, where=condition)
        return Answer(rows, model, "table", self._opened.version(), unused=unused)

    def _read_state(self) -> tuple[IndexState | None, str]:
        """Return the index's state; without a usable index, None and the reason."""
        try:
            return self._index.read_state(str(self._opened.metadata().id)), ""
        except IndexUnusable as error:
            return None, error.reason

    def _ask_index(
        self,
        state: IndexState,
        vector: Vector,
        model_id: str,
        *,
        k: int,
        where: Condition | None,
        exact: bool,
    ) -> Answer:
        try:
            rows = self._index.search(
                state, vector, model_id=model_id, k=k, where=where, exact=exact
            )
        except IndexUnusable:
            # A full pass that has ended since has dropped the collections that the state named.
            newer, _ = self._read_state()
            if newer is None or newer.generation == state.generation:
                raise
            return self._ask_index(newer, vector, model_id, k=k, where=where, exact=exact)
        return Answer(
            rows,
            model_id,
            "index",
            self._opened.version(),
            index_version=state.version,
            index_address=self._index.address,
        )

    def _read_query(
        self, query: Query, state: IndexState | None, *, model_id: str | None, weights: str | None
    ) -> tuple[str, Vector]:
        """Return the model whose rows are searched, and the query's vector."""
        if isinstance(query, Path):
            query = read_query_file(query)
        if isinstance(query, bytes | str):
            return self._embed(query, model_id=model_id, weights=weights)
        if isinstance(query, tuple) and query and isinstance(query[0], str):
            return self._find_vector(_read_position(query), state, model_id=model_id)
        return model_id or self._choose_only_model(), _read_vector(query)

    def _embed(
        self, query: bytes | str, *, model_id: str | None, weights: str | None
    ) -> tuple[str, Vector]:
        if self._embedder is None:
            # It imports torch, which other queries do not need.
            from embedstream.search.queries import QueryEmbedder

            self._embedder = QueryEmbedder(
                self._encoders, decode_settings=self._decode_settings, isolation=self._isolation
            )
        model_ids = [model_id] if model_id else list_models(self._opened)
        model, (vector,) = self._embedder.embed([query], model_ids=model_ids, weights=weights)
        return model, vector

    def _find_vector(
        self, position: Position, state: IndexState | None, *, model_id: str | None
    ) -> tuple[str, Vector]:
        """Return the embedding of a row: from the index, or from the table if it is not there."""
        found: dict[str, Vector] = {}
        if state is not None:
            # If the index fails, the search itself says so.
            with suppress(IndexUnusable):
                found = self._index.find_rows_at(state, position)
        if not found or model_id not in (None, *found):
            found = find_rows_at(self._opened, position)
        if model_id is None and len(found) > 1:
            raise SetupError(
                f"the row has embeddings of several models: {', '.join(sorted(found))}; choose one "
                "with --model-id"
            )
        chosen = model_id or next(iter(found))
        if chosen not in found:
            raise SetupError(
                f"the row has no embedding of '{chosen}', but of {', '.join(sorted(found))}; "
                "choose that with --model-id"
            )
        return chosen, found[chosen]

    def _choose_only_model(self) -> str:
        model_ids = list_models(self._opened)
        if len(model_ids) > 1:
            raise SetupError(
                f"the table '{self.table}' has rows of several models: {', '.join(model_ids)}; "
                "choose the one that made the vector with model_id"
            )
        return model_ids[0]


def read_query_file(path: Path) -> bytes:
    """Return the bytes of a query; raise SetupError if the file cannot be read, or never ends."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_QUERY_BYTES + 1)
    except OSError as error:
        raise SetupError(f"the query '{path}' cannot be read: {error.strerror}") from None
    if len(content) > _MAX_QUERY_BYTES:
        raise SetupError(f"the query '{path}' has more than {_MAX_QUERY_BYTES} bytes")
    return content


def _read_position(query: Sequence[Any]) -> Position:
    match query:
        case [str() as topic, int() as partition, int() as offset]:
            return topic, partition, offset
    raise SetupError(
        f"a position is (topic, partition, offset), such as ('images', 0, 17): {query}"
    )


def _read_vector(query: Any) -> Vector:
    try:
        vector = np.asarray(query, np.float32)
    except (TypeError, ValueError):
        raise SetupError(
            f"a query is a path, bytes, words, a position or a vector, not a {type(query).__name__}"
        ) from None
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise SetupError(
            f"a vector has one dimension and finite numbers; this one has the shape {vector.shape}"
        )
    return vector
