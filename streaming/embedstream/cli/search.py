"""Searching a table from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedstream.cli import console
from embedstream.cli.options import OutputForm
from embedstream.config.sections import StreamConfig
from embedstream.kafka.client_settings import convert_options
from embedstream.search.answer import Neighbour, list_neighbours
from embedstream.search.contact_sheet import Tile, check_sheet_path, draw_contact_sheet, save_sheet
from embedstream.search.contents import read_file_content, read_kafka_content
from embedstream.search.nearest import Searcher, read_query_file
from embedstream.search.scan import Position
from embedstream_core.media.detect import detect_type
from embedstream_core.messages.parse import MessageReader

__all__ = ["search_table"]


def search_table(
    query: Path | str | Position,
    table: str | None,
    *,
    config: StreamConfig | None = None,
    k: int = 10,
    where: str | None = None,
    form: OutputForm = OutputForm.TABLE,
    out: Path | None = None,
    exact: bool = False,
    model_id: str | None = None,
    weights: str | None = None,
    servers: str | None = None,
) -> None:
    """Print the k rows nearest to a file, a text or a row; draw them on a sheet if `out` is given.

    What was compared, and how new that is, goes to the standard error.
    """
    if out is not None:
        check_sheet_path(out)
    content = read_query_file(query) if isinstance(query, Path) else query
    with Searcher(table, config=config) as searcher:
        answer = searcher.search(
            content, k=k, where=where, model_id=model_id, weights=weights, exact=exact
        )
    if form is OutputForm.TABLE:
        _print_table(answer.rows)
    elif form is OutputForm.JSON:
        for row in answer.rows.to_pylist():
            console.print_json(_convert_row(row))
    console.print_error(answer.describe())
    if out is not None:
        read_content = _find_reader(config, servers)
        neighbours = list_neighbours(answer.rows)
        name = query.name if isinstance(query, Path) else ""
        tile = _make_tile(name, content, neighbours, read_content)
        save_sheet(draw_contact_sheet([(tile, neighbours)], read_content), out)
        written = f"contact sheet: {out}"
        if form is OutputForm.JSON:
            console.print_error(written)
        else:
            console.print_text(written)


def _print_table(rows: pa.Table) -> None:
    lines = [
        [
            f"{row.similarity:.4f}",
            row.image_id,
            row.media_type or "",
            row.uri or f"{row.topic}-{row.partition}-{row.offset}",
        ]
        for row in list_neighbours(rows)
    ]
    console.print_rows(["similarity", "id", "media type", "source"], lines)


def _convert_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in the types of JSON."""
    time: datetime | None = row["timestamp"]
    return row | {
        # The digits that a float32 has.
        "similarity": float(f"{row['similarity']:.7g}"),
        "timestamp": None if time is None else time.isoformat(),
        "attributes": dict(row["attributes"] or ()),
    }


def _find_reader(
    config: StreamConfig | None, servers: str | None
) -> Callable[[Neighbour], bytes | None]:
    """Return the function that reads a row's content, from its file or from Kafka."""
    settings = {} if config is None else convert_options(config.kafka.options)
    reader = MessageReader() if config is None else config.message.build_reader()
    if servers is None and config is not None:
        servers = config.kafka.bootstrap_servers

    def read_content(row: Neighbour) -> bytes | None:
        if row.uri is not None:
            return read_file_content(row.uri)
        if servers is None:
            return None
        return read_kafka_content(row, bootstrap_servers=servers, settings=settings, reader=reader)

    return read_content


def _make_tile(
    name: str,
    query: bytes | str | Position,
    neighbours: Sequence[Neighbour],
    read_content: Callable[[Neighbour], bytes | None],
) -> Tile:
    """Return the tile of a query; that of a row has its content if the row is among the found."""
    if isinstance(query, bytes):
        return Tile(name, query, detect_type(query))
    if isinstance(query, str):
        return Tile("", query.encode(), "text/plain")
    for one in neighbours:
        if (one.topic, one.partition, one.offset) == query:
            return Tile(one.image_id, read_content(one), one.media_type, one.duration_s)
    return Tile("-".join(map(str, query)), None)
