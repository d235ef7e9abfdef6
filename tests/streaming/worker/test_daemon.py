"""The process that forks the workers starts, whatever the encoders' libraries do."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from embedstream.worker.daemon import import_libraries


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_a_library_that_cannot_be_imported_is_left_to_the_worker(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "timm.py").write_text(f"raise {error}('built for another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)

    with caplog.at_level(logging.INFO):
        import_libraries(["timm/vit_tiny_patch16_224"])

    assert caplog.messages == ["timm was not imported before the workers start"]
