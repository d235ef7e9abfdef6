"""Image files to a DataFrame: their bytes, and what their headers tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import IntegerType, StringType, StructField, StructType

from embedstream.arrow_columns import column_function
from embedstream.config import BatchConfig
from embedstream.embedder import decode_limits
from embedstream.outcomes import COLUMN_TYPE, error_struct
from embedstream_core.decode import DecodeLimits, open_image
from embedstream_core.errors import ItemError
from embedstream_core.records import Failure

__all__ = ["file_uris", "read_images"]

_HEADER_TYPE = StructType(
    [
        StructField("width", IntegerType()),
        StructField("height", IntegerType()),
        StructField("format", StringType()),
        COLUMN_TYPE["error"],
    ]
)


def file_uris(spark: SparkSession, path: str) -> list[str]:
    """The files at a path, as references: of all below a folder, or that a pattern matches."""
    return [_as_reference(uri) for uri in _files(spark, path).inputFiles()]


def _as_reference(uri: str) -> str:
    """Spark escapes what is no text of a URI; of objects, references have the key as it is."""
    key = uri.removeprefix("s3a://")
    return uri if key == uri else f"s3://{unquote(key)}"


def _files(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(path)


def read_images(spark: SparkSession, path: str, *, config: BatchConfig | None = None) -> DataFrame:
    """The files at a path, one row each: `path`, `content`, `width`, `height`, `format`, `error`.

    Width and height are in pixels, as displayed; the format is Pillow's name, such as JPEG. Only
    headers are read. A file whose header says that it cannot be embedded has an error,
    `struct<code, stage, message>`, in place of these three.
    """
    limits = decode_limits((config or BatchConfig()).decode)

    def headers(columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        kind = to_arrow_type(_HEADER_TYPE)
        for column in columns:
            yield pa.array((_header(content, limits) for content in column.to_pylist()), kind)

    read = column_function(headers, _HEADER_TYPE)
    files = _files(spark, path)
    contents = files.select("path", "content").unionAll(_empty(spark, files))
    return contents.withColumn("header", read("content")).select("path", "content", "header.*")


def _empty(spark: SparkSession, files: DataFrame) -> DataFrame:
    """The files without a byte: Spark lists them, but none of its readers gives them a row."""
    listed = spark.createDataFrame([(_as_path(uri),) for uri in files.inputFiles()], "path string")
    unread = listed.join(files.select("path"), "path", "left_anti")
    return unread.select("path", f.lit(b"").alias("content"))


def _as_path(uri: str) -> str:
    """As Spark writes it in the column `path`."""
    return unquote(uri).replace("file:///", "file:/", 1)


def _header(content: bytes, limits: DecodeLimits) -> dict[str, Any]:
    try:
        opened = open_image(content, limits)
    except ItemError as error:
        return {"error": error_struct(Failure(error.code, error.stage, error.message))}
    return {"width": opened.width, "height": opened.height, "format": opened.format}
