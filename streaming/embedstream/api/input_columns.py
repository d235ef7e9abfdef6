"""Columns of images, texts and audio: find them, check their type, and read their values."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from embedstream_core.models.probe import NOUNS
from embedstream_core.records import Entry, Failure, Item
from embedstream_core.settings import ModalityName

__all__ = ["KINDS", "InputKind", "find_column", "find_columns"]

# Spark's image struct holds rows of bytes in OpenCV's order; its modes are OpenCV's numbers.
_IMAGE_MODES = {0: ("L", "L"), 16: ("RGB", "BGR"), 24: ("RGBA", "BGRA")}


@dataclass(frozen=True, slots=True)
class InputKind:
    """The columns that hold contents of one modality.

    `types` is a pattern of Spark's names for their types, and `described` says the same in words.
    """

    modality: ModalityName
    types: str
    described: str
    empty: Code

    @property
    def rule(self) -> str:
        """What a column of this kind holds, as a sentence."""
        return f"{NOUNS[self.modality]} are {self.described}"

    @property
    def argument_types(self) -> str:
        """The pattern for a function's argument; a null may have no type."""
        return f"{self.types}|void"

    def find_column(self, df: DataFrame, name: str) -> Column:
        """Find a column of this kind as `find_column` does.

        Raises:
            SetupError: there is no such column, there are several, or it is of another kind.
        """
        column, kind = find_column(df, name)
        text = kind.simpleString()
        if not re.fullmatch(self.types, text):
            fields = kind.fields if isinstance(kind, StructType) else []
            inner = [field.name for field in fields if isinstance(field.dataType, BinaryType)]
            way_out = f"; for its field give '{name}.{inner[0]}'" if inner else ""
            raise SetupError(f"column '{name}' is of type {text}; {self.rule}{way_out}")
        return column

    def require(self, column: Column | str) -> Column:
        """Return the same column; Spark refuses to analyze it if it is of another kind.

        Spark does not check the types of a Python function's columns, but it does look for the
        field of a struct, and the name of a field may depend on a type. The plan keeps nothing of
        this.
        """
        inputs = f.col(column) if isinstance(column, str) else column
        kind = f.typeof(inputs)
        found = f.when(kind.rlike(f"^({self.argument_types})$"), f.lit(self.rule)).otherwise(
            f.concat(f.lit("a column of type "), kind)
        )
        # Spark's error for a column of another type names the field.
        return f.named_struct(found, inputs)[self.rule]

    def read_entries(self, column: pa.Array) -> list[Entry]:
        """Read the values of an Arrow array.

        Raises:
            SetupError: the array is of another kind.
        """
        kind, types = column.type, pa.types
        is_image = self.modality == "image"
        read: Callable[[Any], Entry]
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind):
            read = partial(Item, "")
        elif types.is_string(kind) or types.is_large_string(kind):
            read = _read_text if self.modality == "text" else partial(Item, "", None)
        elif is_image and types.is_struct(kind) and kind.get_field_index("nChannels") >= 0:
            read = _read_image_struct
        else:
            raise SetupError(f"the column is of type {kind}; {self.rule}")
        null = Failure(self.empty, Stage.MESSAGE, f"the {self.modality} is null")
        return [
            null if value is None else attempt(partial(read, value), Stage.DECODE)
            for value in column.to_pylist()
        ]


KINDS: Mapping[ModalityName, InputKind] = {
    "image": InputKind(
        "image",
        r"binary|string.*|"
        r"struct<origin:\w+,height:\w+,width:\w+,nChannels:\w+,mode:\w+,data:\w+>",
        "bytes (binary), URIs (string), or Spark's image struct",
        Code.IMAGE_EMPTY,
    ),
    "text": InputKind(
        "text",
        "binary|string.*",
        "strings, or their bytes in UTF-8 (binary)",
        Code.TEXT_EMPTY,
    ),
    "audio": InputKind(
        "audio",
        "binary|string.*",
        "bytes of audio files (binary), or URIs (string)",
        Code.AUDIO_EMPTY,
    ),
}


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


def _read_text(text: str) -> Entry:
    return Item("", content=text.encode(), media_type="text/plain")


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
