"""embedstream whole: from messages in a real Kafka broker to commits of a Delta table.

The time is from the start of the query to its end, once all messages are in the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from protocol import WEIGHTS, Backend, Precision, Run, serve
from stream_runs import drain, fill, opened, settings, workplace


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with workplace() as place:
        fill(place.servers, "contents", pq.read_table(images)["content"].to_pylist())
        config = settings(
            place,
            "contents",
            encoder=encoder,
            weights=WEIGHTS[encoder],
            precision=precision,
            backend=backend,
        )
        with opened(config) as (spark, model):

            def run() -> tuple[int, float]:
                turn = drain(spark, config, model).turn
                return turn.items, turn.seconds

            yield run


if __name__ == "__main__":
    # What remains is the protocol's.
    encoder = sys.argv.pop()
    serve(prepare, ["pyspark", "pandas", "deltalake"])
