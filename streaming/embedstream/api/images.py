"""Image files to a DataFrame: their bytes, and what their headers say."""

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
from pyspark.sql.types import BinaryType, IntegerType, StringType, StructField, StructType

from embedstream.config.sections import DataFrameConfig
from embedstream.spark.listing import Listing, binary_files, list_files
from embedstream.table.rows import COLUMN_TYPE, error_struct
from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.fetch import Fetcher, FetchPolicy, open_fetcher
from embedstream_core.media.image.decode import DecodeLimits, open_image
from embedstream_core.records import Failure

__all__ = ["read_images"]

_log = logging.getLogger(__name__)

_IMAGES_TYPE = StructType(
    [
        StructField("path", StringType()),
        StructField("content", BinaryType()),
        StructField("width", IntegerType()),
        StructField("height", IntegerType()),
        StructField("format", StringType()),
        COLUMN_TYPE["error"],
    ]
)

# A path, and either the reference to fetch or the content.
_FILES_TYPE = "path string, uri string, content binary"

_BATCH_BYTES = 16 * 2**20

# Spark puts about as many small files in one task.
_FILES_A_PARTITION = 64
_FEW_PARTITIONS = 64


def read_images(
    spark: SparkSession, path: str, *, config: DataFrameConfig | None = None
) -> DataFrame:
    """Read a file, all files below a folder, or those that a pattern matches, as one row each.

    The columns are `path`, `content`, `width`, `height`, `format` and `error`. Width and height are
    in pixels, as displayed; the format is Pillow's name, such as JPEG. Only headers are read. A
    file that cannot be embedded by its header, or that cannot be read, has an error,
    `struct<code, stage, message>`, in place of these three. `content` is null where nothing could
    be read, and of local files with more bytes than `decode.max_image_bytes`.

    Raises:
        SetupError: nothing is at the path, or it cannot be listed.
    """
    limits = (config or DataFrameConfig()).decode.limits
    listing = list_files(spark, path)
    if listing.hidden:
        _log.info("%d hidden files or folders at '%s' are left out", listing.hidden, path)
    files = _by_spark(spark, listing) if listing.folder is None else _local(spark, listing)
    return files.mapInArrow(_Reader(limits), _IMAGES_TYPE)


def _local(spark: SparkSession, listing: Listing) -> DataFrame:
    uris = zip(map(_as_path, listing.files), listing.references(), strict=True)
    files = spark.createDataFrame([(path, uri, None) for path, uri in uris], _FILES_TYPE)
    partitions = math.ceil(len(listing.files) / _FILES_A_PARTITION)
    # One for each core, as Spark makes them, would be too large when there are many files.
    return files.repartition(partitions) if partitions > _FEW_PARTITIONS else files


def _as_path(file: str) -> str:
    """As Spark writes it in its column `path`; only a name that is not UTF-8 is escaped."""
    try:
        file.encode()
    except UnicodeEncodeError:
        return Path(file).as_uri()
    return f"file:{file}"


def _by_spark(spark: SparkSession, listing: Listing) -> DataFrame:
    """What Spark's reader gives, and the files that were listed and it gives no row for.

    These are the ones without a byte, and names that it leaves out.
    """
    read = binary_files(spark, listing.spark_path).select("path", "content")
    sizes = [(file, size) for file, size in (listing.sizes or {}).items()]
    listed = spark.createDataFrame(sizes, "path string, size long")
    content = f.when(f.col("size") == 0, f.lit(b"")).alias("content")
    unread = listed.join(read.select("path"), "path", "left_anti").select("path", content)
    return read.unionAll(unread).select("path", f.lit(None).alias("uri"), "content")


@dataclass(frozen=True)
class _Reader:
    """Called by Spark on a worker with the files of one partition."""

    limits: DecodeLimits

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        schema = to_arrow_schema(_IMAGES_TYPE)
        # The caller has named the files: wherever links lead, they are read.
        policy = FetchPolicy(
            schemes=("file",), folders=(Path("/"),), max_bytes=self.limits.max_bytes
        )
        rows: list[dict[str, Any]] = []
        size = 0
        with open_fetcher(policy) as fetcher:
            for batch in batches:
                for file in batch.to_pylist():
                    rows.append(self._row(fetcher, **file))
                    size += len(rows[-1].get("content") or b"")
                    if size >= _BATCH_BYTES:
                        yield pa.RecordBatch.from_pylist(rows, schema)
                        rows, size = [], 0
        yield pa.RecordBatch.from_pylist(rows, schema)

    def _row(
        self, fetcher: Fetcher, path: str, uri: str | None, content: bytes | None
    ) -> dict[str, Any]:
        if uri is not None:
            fetched = attempt(lambda: fetcher.fetch(uri), Stage.FETCH)
            if isinstance(fetched, Failure):
                return {"path": path, "error": error_struct(fetched)}
            content = fetched
        header = attempt(lambda: _header(content, self.limits), Stage.DECODE)
        if isinstance(header, Failure):
            header = {"error": error_struct(header)}
        return {"path": path, "content": content, **header}


def _header(content: bytes | None, limits: DecodeLimits) -> dict[str, Any]:
    if content is None:
        reason = "Spark's reader leaves out this name; begin it with neither '_' nor '.'"
        raise ItemError(Code.REFERENCE_UNREADABLE, Stage.FETCH, reason)
    opened = open_image(content, limits)
    return {"width": opened.width, "height": opened.height, "format": opened.format}
