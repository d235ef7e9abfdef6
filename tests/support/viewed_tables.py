"""Tables as the viewer reads them: rows whose contents are files, and the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from embedstream.config.sections import StreamConfig
from embedstream.monitor.viewer import RowPosition
from outcome_tables import row, write_table

__all__ = ["START", "at", "file_rows", "made", "stream_config", "write_files"]

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(offset: int) -> RowPosition:
    return RowPosition("images", 0, offset)


def made(offset: int, *, minutes: int | None = None, **columns: Any) -> dict[str, Any]:
    """An embedding, made so many minutes after `START`; columns replace its own."""
    processed_at = START + timedelta(minutes=offset if minutes is None else minutes)
    vector = [float(offset), 1.0]
    return row(f"id {offset}", vector, offset=offset) | {"processed_at": processed_at} | columns


def stream_config(folder: Path, table: str, **sections: Any) -> StreamConfig:
    """A stream that may fetch the files of a folder."""
    return StreamConfig.model_validate(
        {
            "kafka": {"bootstrap_servers": "127.0.0.1:1", "subscribe": "images"},
            "table": {"path": table},
            "checkpoint": str(folder / "checkpoint"),
            "references": {"folders": [str(folder)]},
            **sections,
        }
    )


def file_rows(folder: Path, contents: Iterable[tuple[bytes, str | None]]) -> list[dict[str, Any]]:
    """A row for each content, in a file of its own; without a media type, a failure."""
    rows = []
    for offset, (content, kind) in enumerate(contents):
        path = folder / f"content {offset}"
        path.write_bytes(content)
        rows.append(made(offset, uri=path.as_uri(), media={"type": kind}))
        if kind is None:
            error = {"code": "image_unsupported", "stage": "decode", "message": "no picture"}
            rows[-1] |= {"embedding": None, "error": error, "media": None}
    return rows


def write_files(folder: Path, contents: Iterable[tuple[bytes, str | None]]) -> str:
    """A table of such rows."""
    return write_table(folder, file_rows(folder, contents))
