"""Read image files into a DataFrame: their bytes, and the fields of their headers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from embedstream.config.sections import DataFrameConfig
from embedstream.spark.listing import list_files, read_binary_files
from embedstream.table.rows import COLUMN_TYPE, build_error_struct
from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.fetch.fetcher import Fetcher, open_fetcher
from embedstream_core.media.image.decode import open_image
from embedstream_core.records import Failure
from embedstream_core.settings import DecodeSettings, FetchPolicy

__all__ = ["read_images"]

_log = logging.getLogger(__name__)

_IMAGES_TYPE = (
    StructType()
    .add("path", "string")
    .add("content", "binary")
    .add("width", "integer")
    .add("height", "integer")
    .add("format", "string")
    .add(COLUMN_TYPE["error"])
)

_BATCH_BYTES = 16 * 2**20

# Spark puts about as many small files in one task.
_FILES_PER_PARTITION = 64
_FEW_PARTITIONS = 64


def read_images(
    spark: SparkSession, path: str, *, config: DataFrameConfig | None = None
) -> DataFrame:
    """Read a file, all files below a folder, or those that match a pattern, as one row each.

    The columns are `path`, `content`, `width`, `height`, `format` and `error`. Width and height are
    in pixels, as displayed; the format is Pillow's name, such as JPEG. Only headers are read. A
    file that cannot be embedded by its header, or that cannot be read, has an error,
    `struct<code, stage, message>`, in place of these three. `content` is null where nothing could
    be read, and of local files with more bytes than `decode.max_image_bytes`.

    Raises:
        SetupError: the path does not exist, or cannot be listed.
    """
    limits = (config or DataFrameConfig()).decode.settings
    listing = list_files(spark, path)
    if listing.hidden:
        _log.info("%d hidden files or folders at '%s' are left out", listing.hidden, path)
    if listing.folder is None:
        read = read_binary_files(spark, listing.spark_path).select("path", "content")
        # Spark's reader returns no row for a file without a byte, and for names that it leaves out.
        listed = spark.createDataFrame([*(listing.sizes or {}).items()], "path string, size long")
        content = f.when(f.col("size") == 0, f.lit(b"")).alias("content")
        unread = listed.join(read.select("path"), "path", "left_anti").select("path", content)
        files = read.unionAll(unread).select("path", f.lit(None).alias("uri"), "content")
    else:
        # Spark's column `path` holds plain names; only a name that is not UTF-8 is escaped.
        rows = [
            (f"file:{file}" if file.encode(errors="replace").decode() == file else uri, uri, None)
            for file, uri in zip(listing.files, listing.build_references(), strict=True)
        ]
        files = spark.createDataFrame(rows, "path string, uri string, content binary")
        # For many files, Spark's one partition per core would be too large.
        if (partitions := math.ceil(len(rows) / _FILES_PER_PARTITION)) > _FEW_PARTITIONS:
            files = files.repartition(partitions)
    return files.mapInArrow(_Reader(limits), _IMAGES_TYPE)


@dataclass(frozen=True)
class _Reader:
    """Reads the files of one partition; Spark calls it on a worker."""

    limits: DecodeSettings

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        schema = to_arrow_schema(_IMAGES_TYPE)
        # The caller has named the files: links may lead anywhere.
        policy = FetchPolicy(
            schemes=("file",), folders=(Path("/"),), max_bytes=self.limits.max_bytes
        )
        rows: list[dict[str, Any]] = []
        size = 0
        with open_fetcher(policy) as fetcher:
            for batch in batches:
                for row in batch.to_pylist():
                    rows.append(self._read(fetcher, row, row.pop("uri")))
                    size += len(row["content"] or b"")
                    if size >= _BATCH_BYTES:
                        yield pa.RecordBatch.from_pylist(rows, schema)
                        rows, size = [], 0
        yield pa.RecordBatch.from_pylist(rows, schema)

    def _read(self, fetcher: Fetcher, row: dict[str, Any], uri: str | None) -> dict[str, Any]:
        """Add to a row the content behind `uri`, and the fields of the header or an error."""

        def read_header() -> dict[str, Any]:
            if uri is not None:
                row["content"] = fetcher.fetch(uri)
            if row["content"] is None:
                reason = "Spark's reader leaves out this name; begin it with neither '_' nor '.'"
                raise ItemError(Code.REFERENCE_UNREADABLE, Stage.FETCH, reason)
            opened = open_image(row["content"], self.limits)
            return {"width": opened.width, "height": opened.height, "format": opened.format}

        found = attempt(read_header, Stage.DECODE)
        row.update({"error": build_error_struct(found)} if isinstance(found, Failure) else found)
        return row
