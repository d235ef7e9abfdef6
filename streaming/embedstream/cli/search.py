"""Searching a table from the command line."""

from __future__ import annotations

from pathlib import Path

from embedstream.cli import console
from embedstream.index.contact_sheet import Tile, check_sheet_path, draw_contact_sheet, save_sheet
from embedstream.index.contents import read_file_content, read_kafka_content
from embedstream.index.search import Neighbour, embed_images, find_nearest, find_newest_model
from embedstream_core.errors import SetupError

__all__ = ["search_table"]


def search_table(
    image: Path,
    table: str,
    *,
    k: int,
    out: Path | None,
    model_id: str | None,
    weights: str | None,
    servers: str | None,
) -> None:
    """Print the k rows nearest to an image, and draw them on a contact sheet if `out` is given."""

    def read_content(row: Neighbour) -> bytes | None:
        if row.uri is not None:
            return read_file_content(row.uri)
        return read_kafka_content(row, bootstrap_servers=servers) if servers else None

    if out is not None:
        check_sheet_path(out)
    try:
        content = image.read_bytes()
    except OSError as error:
        raise SetupError(f"the image '{image}' cannot be read: {error.strerror}") from None
    model = model_id or find_newest_model(table)
    (vector,) = embed_images([content], model_id=model, weights=weights)
    neighbours = find_nearest(table, vector, model_id=model, k=k)
    for row in neighbours:
        source = row.uri or f"{row.topic}-{row.partition}-{row.offset}"
        console.print_text(f"{row.similarity:7.4f}  {row.image_id}  ({source})")
    if out is not None:
        save_sheet(draw_contact_sheet([(Tile(image.name, content), neighbours)], read_content), out)
        console.print_text(f"contact sheet: {out}")
