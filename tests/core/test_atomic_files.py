"""A file appears whole or not at all, and no draft of it stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedstream_core.atomic_files import open_draft, replace_file


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model"

    replace_file(path, b"old")
    replace_file(path, b"new")

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_nothing_before_the_end_and_nothing_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model"
    replace_file(path, b"old")

    def fail() -> None:
        with open_draft(path) as draft:
            draft.write(b"half")
            draft.flush()
            assert path.read_bytes() == b"old"
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_the_permissions_are_as_requested(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "model"
    mask = os.umask(0o022)
    try:
        replace_file(path, b"secret", mode=mode)
    finally:
        os.umask(mask)

    assert path.stat().st_mode & 0o777 == mode
