"""The picture of the architecture shows the rooms that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

import embedstream
import embedstream_core

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["architecture.dot", "architecture.svg", "architecture.md"])
def test_each_room_is_shown(name: str) -> None:
    shown = (DOCS / name).read_text(encoding="utf-8")
    rooms = {
        folder.parent.name
        for package in (embedstream, embedstream_core)
        for folder in Path(package.__path__[0]).glob("*/__init__.py")
    }

    assert "kafka" in rooms
    assert {room for room in rooms if room not in shown} == set()
