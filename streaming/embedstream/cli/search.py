"""Searching a table from the command line."""

from __future__ import annotations

from pathlib import Path

from embedstream.cli import console
from embedstream.index.table_reader import list_models
from embedstream.search.contact_sheet import Tile, check_sheet_path, draw_contact_sheet, save_sheet
from embedstream.search.contents import read_file_content, read_kafka_content
from embedstream.search.queries import embed_queries
from embedstream.search.scan import Neighbour, find_nearest
from embedstream_core.errors import SetupError
from embedstream_core.media.detect import detect_type

__all__ = ["search_table"]


def search_table(
    query: Path | str,
    table: str,
    *,
    k: int,
    out: Path | None = None,
    model_id: str | None = None,
    weights: str | None = None,
    servers: str | None = None,
) -> None:
    """Print the k rows nearest to a file or a text; draw them on a sheet if `out` is given."""

    def read_content(row: Neighbour) -> bytes | None:
        if row.uri is not None:
            return read_file_content(row.uri)
        return read_kafka_content(row, bootstrap_servers=servers) if servers else None

    if out is not None:
        check_sheet_path(out)
    try:
        content = query if isinstance(query, str) else query.read_bytes()
    except OSError as error:
        raise SetupError(f"the query '{query}' cannot be read: {error.strerror}") from None
    model_ids = [model_id] if model_id else list_models(table)
    model, (vector,) = embed_queries([content], model_ids=model_ids, weights=weights)
    neighbours = find_nearest(table, vector, model_id=model, k=k)
    for row in neighbours:
        source = row.uri or f"{row.topic}-{row.partition}-{row.offset}"
        console.print_text(f"{row.similarity:7.4f}  {row.image_id}  ({source})")
    if out is not None:
        if isinstance(content, bytes):
            tile = Tile(Path(query).name, content, detect_type(content))
        else:
            tile = Tile("", content.encode(), "text/plain")
        save_sheet(draw_contact_sheet([(tile, neighbours)], read_content), out)
        console.print_text(f"contact sheet: {out}")
