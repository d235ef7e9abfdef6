"""`embedstream batch`: from a folder of files to commits of a Delta table.

The time is from the listing of the files to the last commit.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from embedstream.batch import Files
from embedstream.config import FilesConfig, TableConfig
from embedstream.session import open_session
from embedstream_config import config, embeddings
from embedstream_core.weights import ModelSpec, prepare_model
from protocol import Backend, Precision, Run, serve

CHUNK_ROWS = 2000
"""As the command has it."""


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with TemporaryDirectory(prefix="embedstream-benchmark-") as name:
        folder = Path(name)
        files = _write(pq.read_table(images, columns=["content"]), folder / "files")
        settings = config(folder, precision, backend)
        with open_session(settings.spark, settings.pipeline) as spark:
            model = prepare_model(ModelSpec("resnet50", "random"))

            def run() -> int:
                fresh = FilesConfig(
                    encoder=settings.encoder,
                    table=TableConfig(path=str(folder / uuid.uuid4().hex)),
                )
                job = Files(spark, fresh, model, str(files))
                for chunk in job.plan(chunk_rows=CHUNK_ROWS):
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
