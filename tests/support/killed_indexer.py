"""`embedstream` that is killed at a named point: `python killed_indexer.py POINT index …`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from embedstream.cli.app import app

__all__ = ["FULL_PASS_POINTS", "POINTS"]

POINTS = ("write begun", "rows written", "state written", "maintenance")
"""The points at which it follows the table."""

FULL_PASS_POINTS = ("full pass", "between generations", "approximate index")
"""The points of a full pass over a table of some hundred rows."""

_WRITERS = [
    ("embedstream.index.stores.lancedb", "LanceWriter"),
    ("embedstream.index.stores.pgvector", "PgvectorWriter"),
]
_INTO_WORK_S = 0.01


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_soon() -> None:
    def wait() -> None:
        time.sleep(_INTO_WORK_S)
        _kill()

    threading.Thread(target=wait).start()


def _wrap(
    writer: Any, name: str, *, before: Callable[..., object], after: Callable[..., object]
) -> None:
    method = getattr(writer, name)

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        before(*arguments, **named)
        result = method(self, *arguments, **named)
        after(*arguments, **named)
        return result

    setattr(writer, name, wrapped)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _arrange(writer: Any, point: str) -> None:
    """Let the writer kill its process at the point."""
    follows = False

    def begin_write(writes: Any, state: str) -> None:
        nonlocal follows
        follows = bool(writes) and '"full_pass":null' in state
        if follows and point == "write begun":
            _kill()

    def end_write(writes: Any, state: str) -> None:
        if (point == "state written" and follows) or (
            point == "full pass" and writes and '"full_pass":null' not in state
        ):
            _kill()

    def end_rows(*_: Any) -> None:
        if point == "rows written" and follows:
            _kill()

    _wrap(writer, "write", before=begin_write, after=end_write)
    _wrap(writer, "_apply", before=_nothing, after=end_rows)
    for name, method, kill in (
        ("between generations", "drop", _kill),
        ("maintenance", "maintain", _kill_soon),
        ("approximate index", "build_ann", _kill_soon),
    ):
        if point == name:
            _wrap(writer, method, before=lambda *_, kill=kill, **__: kill(), after=_nothing)


if __name__ == "__main__":
    for module, name in _WRITERS:
        _arrange(getattr(import_module(module), name), sys.argv[1])
    # A full pass has several writes.
    vars(import_module("embedstream.index.full_pass"))["ROWS_PER_WRITE"] = 100
    del sys.argv[1]
    app()
