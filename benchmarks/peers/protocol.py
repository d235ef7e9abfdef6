"""The line protocol that every peer speaks, so that one driver can time all of them alike.

A peer prepares itself and prints `{"ready": true, "versions": {...}}`. For each line `run` on its
standard input it featurizes all contents and prints `{"items": n, "seconds": s}`. At the end of its
input it stops. Only these lines go to standard output: whatever else a library, a JVM or a worker
prints goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Literal, TextIO

from active_clock import read_active_s

Precision = Literal["float32", "bfloat16"]
Backend = Literal["torch", "compile", "openvino"]
Run = Callable[[], int | tuple[int, float]]
"""Featurizes all contents, consumes all embeddings, and says how many, or how many in what time."""
Prepare = Callable[[Path, Precision, Backend], AbstractContextManager[Run]]
"""Starts what the peer needs, gives its `Run`, and stops what it started."""

CORES = 2
EMBEDDINGS = {"resnet50": 2048, "minilm": 384, "speech-embedding": 96}
"""Floats in an embedding of each encoder that is measured."""
EMBEDDING = EMBEDDINGS["resnet50"]
WEIGHTS = {"resnet50": "random", "minilm": "default", "speech-embedding": "default"}
"""Seeded ones serve as well as published ones, where these would have to be downloaded."""
COMMON = ("torch", "torchvision", "pillow", "numpy", "pyarrow")


def serve(prepare: Prepare, packages: Sequence[str] = ()) -> None:
    """Speaks the protocol until the end of standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--contents", type=Path, required=True, help="Parquet of id and content")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--backend", choices=("torch", "compile", "openvino"), default="torch")
    arguments = parser.parse_args()
    answers = _own_stdout()
    _let_workers_import_these_modules()
    with prepare(arguments.contents.resolve(), arguments.precision, arguments.backend) as run:
        _answer(answers, {"ready": True, "versions": _versions(packages)})
        for _ in _requests(sys.stdin):
            started = read_active_s()
            done = run()
            elapsed = read_active_s() - started
            items, seconds = done if isinstance(done, tuple) else (done, elapsed)
            _answer(answers, {"items": items, "seconds": seconds})


def _requests(lines: TextIO) -> Iterator[None]:
    for line in lines:
        if line.strip() != "run":
            raise SystemExit(f"not 'run': {line!r}")
        yield


def _answer(answers: TextIO, answer: dict[str, object]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _own_stdout() -> TextIO:
    """Keeps standard output for the answers; for all others it becomes standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _let_workers_import_these_modules() -> None:
    """Spark's, Ray's and Daft's worker processes inherit the path from this one."""
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.getenv("PYTHONPATH"))))


def _versions(packages: Sequence[str]) -> dict[str, str]:
    names = (*packages, *COMMON)
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}
