"""Files that appear whole or not at all, also after a crash of the process or the machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_draft", "replace_file"]


@contextmanager
def open_draft(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a hidden file next to `path`, to write the new content of `path`.

    On exit the file is on the disk, and the caller renames or links its `name`; after an error it
    is removed. `mode` is its permissions, less the process's mask.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(draft, "wb", opener=partial(os.open, mode=mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Create or replace a file; its readers see the old content or the new one."""
    with open_draft(path, mode=mode) as draft:
        draft.write(content)
    Path(draft.name).replace(path)
