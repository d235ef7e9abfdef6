"""The files of a table, wherever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs

from embedstream_core.atomic_files import replace_file

__all__ = ["TableFiles"]


class TableFiles:
    """Reads and writes the files of a table through the storage that opened it.

    A path is relative to the table's folder, or absolute as in a shallow clone: a path or a URI.
    Files of this machine are read by pyarrow itself. Others are read by deltalake's handler, which
    is written in Python: only the calling thread may use it, because a thread of pyarrow's that is
    in Python code while the interpreter ends aborts the process (docs/decisions/0017).
    """

    def __init__(self, opened: Any) -> None:
        from deltalake.fs import DeltaStorageHandler

        uri = urlsplit(opened.table_uri)
        self._folder = Path(unquote(uri.path)) if uri.scheme == "file" else None
        self._handler = DeltaStorageHandler.from_table(opened._table)

    def open(self, path: str) -> pa.NativeFile:
        """Open a file for reading at any position.

        Raises:
            FileNotFoundError: there is no such file.
        """
        local = self._find_local(path)
        if local is not None:
            return pa.OSFile(str(local))
        if _is_absolute(path):
            from deltalake.fs import DeltaStorageHandler

            folder, _, name = path.rpartition("/")
            return pa.fs.PyFileSystem(DeltaStorageHandler(folder)).open_input_file(name)
        return pa.fs.PyFileSystem(self._handler).open_input_file(path)

    def read(self, path: str) -> bytes | None:
        """Return a file's content; None if there is no such file."""
        try:
            with self.open(path) as file:
                content: bytes = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return content

    def replace(self, path: str, content: bytes) -> None:
        """Create or replace a file: its readers see the old content or the new one.

        A local folder that is created for it may be entered by its owner alone.

        Raises:
            OSError: it cannot be written.
        """
        local = self._find_local(path)
        if local is not None:
            local.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(local, content)
            return
        # pyarrow's own stream around this one would pass it buffers, and it takes bytes only.
        file: Any = self._handler._handler.open_output_stream(path, None)
        file.write(content)
        # Not after a failed write: that would publish a part of the content.
        file.close()

    def exists(self, path: str) -> bool:
        """Return whether there is such a file."""
        local = self._find_local(path)
        if local is not None:
            return local.exists()
        info = pa.fs.PyFileSystem(self._handler).get_file_info(path)
        return bool(info.type != pa.fs.FileType.NotFound)

    def _find_local(self, path: str) -> Path | None:
        if path.startswith("file:"):
            return Path(urlsplit(path).path)
        if path.startswith("/"):
            return Path(path)
        return None if self._folder is None or _is_absolute(path) else self._folder / path


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith(("/", "file:"))
