"""English texts of 5 to 200 words, cut from the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

__all__ = ["texts"]

FEWEST, MOST = 5, 200
"""Words in a text; all lengths between them are equally frequent."""


def texts(count: int, *, seed: int = 0) -> Iterator[bytes]:
    """Pieces of docstrings that are long enough, the same ones for the same version of Python."""
    choose = random.Random(seed)
    docstrings = sorted((words for words in _docstrings() if len(words) >= FEWEST), key=len)
    longest = len(docstrings[-1])
    for _ in range(count):
        wanted = choose.randint(FEWEST, min(MOST, longest))
        first = next(index for index, words in enumerate(docstrings) if len(words) >= wanted)
        words = docstrings[choose.randrange(first, len(docstrings))]
        start = choose.randint(0, len(words) - wanted)
        yield " ".join(words[start : start + wanted]).encode()


def _docstrings() -> Iterator[list[str]]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented):
                yield (ast.get_docstring(node) or "").split()
