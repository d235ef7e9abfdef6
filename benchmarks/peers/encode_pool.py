"""sentence-transformers' multi-process pool: `encode(pool=…)`, a process of one thread a core.

The form follows its documentation of multi-process encoding
(https://sbert.net/examples/sentence_transformer/applications/computing-embeddings/README.html). The
texts go to the processes in chunks; in each, `encode` sorts by length and cuts batches. The pool is
started once, before the first pass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minilm import load_model, read_texts
from protocol import CORES, Backend, Precision, Run, serve


@contextmanager
def prepare(contents: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    # The processes of the pool are spawned, and read it; so do their tokenizers' threads.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    model = load_model(precision)
    texts = read_texts(contents)
    pool = model.start_multi_process_pool(["cpu"] * CORES)

    def run() -> int:
        found = model.encode(
            texts,
            pool=pool,
            batch_size=batch_size,
            chunk_size=chunk_size or None,
            show_progress_bar=False,
        )
        return len(found)

    yield run
    model.stop_multi_process_pool(pool)


if __name__ == "__main__":
    # What remains is the protocol's.
    chunk_size, batch_size = int(sys.argv.pop()), int(sys.argv.pop())
    serve(prepare, ["sentence-transformers", "transformers"])
