"""Columns of images: finding them, checking their type, and reading their values."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as f
from pyspark.sql.types import BinaryType, DataType, StructField, StructType

from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, SetupError, Stage
from embedstream_core.records import Entry, Failure, Item

__all__ = [
    "ARGUMENT_TYPES",
    "IMAGES_ARE",
    "find_column",
    "find_columns",
    "find_image_column",
    "read_entries",
    "require_images",
]

IMAGES_ARE = "bytes (binary), URIs (string), or Spark's image struct"

_IMAGE_TYPES = (
    r"binary|string.*|"
    r"struct<origin:\w+,height:\w+,width:\w+,nChannels:\w+,mode:\w+,data:\w+>"
)

ARGUMENT_TYPES = f"{_IMAGE_TYPES}|void"
"""A pattern of Spark's names for the types that hold images; a null may have no type."""

# Spark's error for a column of another type names this field.
_FIELD = f"images are {IMAGES_ARE}"

# Spark's image struct holds rows of bytes in OpenCV's order; its modes are OpenCV's numbers.
_IMAGE_MODES = {0: ("L", "L"), 16: ("RGB", "BGR"), 24: ("RGBA", "BGRA")}

_NO_IMAGE = Failure(Code.IMAGE_EMPTY, Stage.MESSAGE, "the image is null")


def find_image_column(df: DataFrame, name: str) -> Column:
    """Find a column of images as `find_column` does.

    Raises:
        SetupError: there is no such column, there are several, or it holds no images.
    """
    column, kind = find_column(df, name)
    text = kind.simpleString()
    if not re.fullmatch(_IMAGE_TYPES, text):
        fields = kind.fields if isinstance(kind, StructType) else []
        inner = [field.name for field in fields if isinstance(field.dataType, BinaryType)]
        way_out = f"; for its field give '{name}.{inner[0]}'" if inner else ""
        raise SetupError(f"column '{name}' is of type {text}; images are {IMAGES_ARE}{way_out}")
    return column


def find_column(df: DataFrame, name: str) -> tuple[Column, DataType]:
    """Find a column, and its type, by its name or as Spark resolves a name: `image.bytes`.

    A column whose own name has dots comes before the field of a struct.

    Raises:
        SetupError: there is no such column, or there are several.
    """
    own = find_columns(df, name)
    is_ambiguous = len(own) > 1
    if len(own) == 1:
        escaped = own[0].name.replace("`", "``")
        return f.col(f"`{escaped}`"), own[0].dataType
    # Spark logs an error for an unresolved name, so it resolves only names that may be a field's.
    if not own and ("." in name or "`" in name):
        try:
            column = f.col(name)
            return column, df.select(column.alias("found")).schema["found"].dataType
        except AnalysisException as error:
            is_ambiguous = str(error.getCondition()).startswith("AMBIGUOUS")
    if is_ambiguous:
        raise SetupError(
            f"there are several columns '{name}' in the DataFrame; rename or drop all but one "
            "first, before the join that brought them together"
        )
    raise SetupError(f"there is no column '{name}'; there are: {', '.join(df.columns)}")


def find_columns(df: DataFrame, name: str) -> list[StructField]:
    """Return the columns to which Spark resolves a name, by default without regard to case."""
    if df.sparkSession.conf.get("spark.sql.caseSensitive") == "true":
        return [field for field in df.schema if field.name == name]
    return [field for field in df.schema if field.name.lower() == name.lower()]


def require_images(column: Column | str) -> Column:
    """Return the same column; Spark refuses to analyze it if it holds no images.

    Spark does not check the types of a Python function's columns, but it does look for the field
    of a struct, and the name of a field may depend on a type. The plan keeps nothing of this.
    """
    images = f.col(column) if isinstance(column, str) else column
    kind = f.typeof(images)
    found = f.when(kind.rlike(f"^({ARGUMENT_TYPES})$"), f.lit(_FIELD)).otherwise(
        f.concat(f.lit("a column of type "), kind)
    )
    return f.named_struct(found, images)[_FIELD]


def read_entries(column: pa.Array) -> list[Entry]:
    """Read the images of an Arrow array.

    Raises:
        SetupError: the array holds no images.
    """
    kind, types = column.type, pa.types
    read: Callable[[Any], Entry]
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind):
        read = partial(Item, "")
    elif types.is_string(kind) or types.is_large_string(kind):
        read = partial(Item, "", None)
    elif types.is_struct(kind) and kind.get_field_index("nChannels") >= 0:
        read = _read_image_struct
    else:
        raise SetupError(f"the column is of type {kind}; images are {IMAGES_ARE}")
    return [
        _NO_IMAGE if value is None else attempt(partial(read, value), Stage.DECODE)
        for value in column.to_pylist()
    ]


def _read_image_struct(image: Mapping[str, Any]) -> Entry:
    """Encode the pixels as a BMP, which costs next to nothing and loses nothing."""
    try:
        mode, order = _IMAGE_MODES[image["mode"]]
        size = image["width"], image["height"]
        pixels = Image.frombytes(mode, size, image["data"], "raw", order)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"the image struct does not hold pixels of 8 bits a channel: {error!r}"
        return Failure(Code.IMAGE_CORRUPT, Stage.DECODE, reason)
    file = io.BytesIO()
    pixels.save(file, "BMP")
    return Item("", content=file.getvalue())
