"""`embedstream batch`: from a folder of files to commits of a Delta table.

The time is from the listing of the files to the last commit.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embedstream.bulk.files import Files
from embedstream.config.sections import BulkFilesConfig, TableConfig
from protocol import WEIGHTS, Backend, Precision, Run, serve
from stream_runs import brokerless, embeddings, opened, settings


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with brokerless() as place:
        files = _write(pq.read_table(images, columns=["content"]), place.folder / "files")
        config = settings(
            place,
            "images",
            encoder="resnet50",
            weights=WEIGHTS["resnet50"],
            precision=precision,
            backend=backend,
        )
        with opened(config) as (spark, model):

            def run() -> int:
                fresh = BulkFilesConfig(
                    encoder=config.encoder,
                    table=TableConfig(path=str(place.folder / uuid.uuid4().hex)),
                )
                job = Files(spark, fresh, model, str(files))
                for chunk in job.plan():
                    job.run(chunk)
                return embeddings(fresh.table.path)

            yield run


def _write(images: pa.Table, folder: Path) -> Path:
    folder.mkdir()
    for number, content in enumerate(images["content"].to_pylist()):
        (folder / f"{number}.jpg").write_bytes(content)
    return folder


if __name__ == "__main__":
    serve(prepare, ["pyspark"])
