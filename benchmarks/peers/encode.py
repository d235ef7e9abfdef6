"""sentence-transformers alone: `encode` in one process, with torch's threads on all cores.

It sorts the texts by length and cuts batches of a fixed size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minilm import load_model, read_texts
from protocol import CORES, Backend, Precision, Run, serve


@contextmanager
def prepare(contents: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    torch.set_num_threads(CORES)
    model = load_model(precision)
    texts = read_texts(contents)

    def run() -> int:
        return len(model.encode(texts, batch_size=batch_size, show_progress_bar=False))

    yield run


if __name__ == "__main__":
    # What remains is the protocol's.
    batch_size = int(sys.argv.pop())
    serve(prepare, ["sentence-transformers", "transformers"])
