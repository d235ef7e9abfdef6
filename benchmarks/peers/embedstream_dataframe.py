"""embedstream over a DataFrame: the same function that the stream runs on each micro-batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedstream.stream.job import build_featurizer
from embedstream.worker.messages import featurize_messages
from protocol import EMBEDDINGS, WEIGHTS, Backend, Precision, Run, serve
from spark import consume
from stream_runs import brokerless, messages, opened, settings


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with brokerless() as place:
        config = settings(
            place,
            "contents",
            encoder=encoder,
            weights=WEIGHTS[encoder],
            precision=precision,
            backend=backend,
        )
        with opened(config) as (spark, model):
            function = build_featurizer(spark, config, [model])
            source = messages(spark, images)
            size = EMBEDDINGS[encoder]
            yield lambda: consume(featurize_messages(source, function), size=size)


if __name__ == "__main__":
    # What remains is the protocol's.
    encoder = sys.argv.pop()
    serve(prepare, ["pyspark", "pandas"])
