"""A column of images becomes a column of embeddings: the adapter that all batch doors share."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from PIL import Image
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.types import BinaryType, DataType, StructField, StructType

from embedstream.api.arrow_columns import ColumnFunction, column_function
from embedstream.config.sections import DataFrameConfig, EncoderConfig
from embedstream.table.rows import COLUMN_TYPE, outcome_column, vector_column
from embedstream.worker.model import choose_precision, prepare
from embedstream.worker.task import Embedder, build_embedder
from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, SetupError, Stage
from embedstream_core.models.prepare import Head
from embedstream_core.records import Entry, Failure, Item, Outcome

__all__ = [
    "ARGUMENT_TYPES",
    "IMAGES_ARE",
    "ImageVectorizer",
    "Returns",
    "columns_named",
    "entries_of",
    "find_column",
    "image_vectorizer",
    "images_only",
    "input_column",
    "prepare_embedder",
]

Returns = Literal["embedding", "outcome"]

_BUILDERS: Mapping[Returns, Callable[[Sequence[Outcome]], pa.Array]] = {
    "embedding": vector_column,
    "outcome": outcome_column,
}
_TYPES: Mapping[Returns, DataType] = {
    "embedding": COLUMN_TYPE["embedding"].dataType,
    "outcome": COLUMN_TYPE,
}

IMAGES_ARE = "bytes (binary), URIs (string), or Spark's image struct"

_IMAGE_TYPES = (
    r"binary|string.*|"
    r"struct<origin:\w+,height:\w+,width:\w+,nChannels:\w+,mode:\w+,data:\w+>"
)

ARGUMENT_TYPES = f"{_IMAGE_TYPES}|void"
"""A pattern of Spark's names for what a function of images takes; a null may have no type."""

# Spark tells it where a column of another type is used.
_FIELD = f"images are {IMAGES_ARE}"

# Spark's image struct holds rows of bytes in OpenCV's order; its modes are OpenCV's numbers.
_IMAGE_MODES = {0: ("L", "L"), 16: ("RGB", "BGR"), 24: ("RGBA", "BGRA")}


@dataclass(frozen=True)
class ImageVectorizer:
    """Makes columns of embeddings: `vectorize("content")`.

    The input is a binary column of image bytes, a string column of URIs, or Spark's `image`
    struct. With `returns="embedding"` the column is `array<float>`, null for what is null or
    cannot be embedded; with `"outcome"` it is `struct<embedding, error>`, and exactly one of the
    two is null.

    It holds no SparkContext, so functions that travel to the workers may refer to it.
    """

    embedder: Embedder
    returns: Returns = "embedding"

    @property
    def dimension(self) -> int:
        """Floats in an embedding."""
        return self.embedder.model.card.dimension

    def __call__(self, column: Column | str) -> Column:
        """
        Raises:
            AnalysisException: the column holds no images; by Spark, where the column is used.
        """
        made: Column = self.function()(images_only(column))
        return made

    def function(self) -> ColumnFunction:
        """The function itself, to register it under a name of one's own.

        Of a column that holds no images the first task tells, for Spark calls it with any type.
        """
        return column_function(self._embed, _TYPES[self.returns])

    def _embed(self, columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """What Spark calls on a worker, with the column's batches."""
        batches = map(entries_of, columns)
        return map(_BUILDERS[self.returns], self.embedder.outcomes(batches))


def image_vectorizer(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig = "resnet50",
    returns: Returns = "embedding",
    config: DataFrameConfig | None = None,
) -> ImageVectorizer:
    """Prepare an encoder on the driver and send it on its way to the workers, once.

    `encoder` is a name, or all its settings. Only what `config.references` allows is fetched;
    without it, nothing.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong; nothing was started.
    """
    embedder = prepare_embedder(spark, encoder=encoder, config=config)
    return ImageVectorizer(embedder, returns)


def prepare_embedder(
    spark: SparkSession,
    *,
    encoder: str | EncoderConfig,
    head: Head = "cut",
    config: DataFrameConfig | None = None,
) -> Embedder:
    """Prepare an encoder on the driver and send it on its way to the workers.

    Raises:
        SetupError: as `image_vectorizer` does.
    """
    settings = EncoderConfig(name=encoder) if isinstance(encoder, str) else encoder
    chosen = choose_precision(spark, prepare(settings, head=head), settings)
    return build_embedder(spark, chosen.model, settings, config or DataFrameConfig())


def input_column(df: DataFrame, name: str) -> Column:
    """Find a column of images as `find_column` does.

    Raises:
        SetupError: there is no such column, there are several, or it holds no images.
    """
    column, kind = find_column(df, name)
    if not re.fullmatch(_IMAGE_TYPES, kind.simpleString()):
        raise SetupError(
            f"column '{name}' is of type {kind.simpleString()}; images are {IMAGES_ARE}"
            f"{_inner_images(name, kind)}"
        )
    return column


def _inner_images(name: str, kind: DataType) -> str:
    fields = kind.fields if isinstance(kind, StructType) else []
    inner = [field.name for field in fields if isinstance(field.dataType, BinaryType)]
    return f"; for its field give '{name}.{inner[0]}'" if inner else ""


def images_only(column: Column | str) -> Column:
    """The same column, which Spark refuses to analyze if it holds no images.

    Spark does not look at the types of a Python function's columns, but it does look for the field
    of a struct, and the name of a field may depend on a type. Nothing of it is left in the plan.
    """
    images = f.col(column) if isinstance(column, str) else column
    kind = f.typeof(images)
    found = f.when(kind.rlike(f"^({ARGUMENT_TYPES})$"), f.lit(_FIELD)).otherwise(
        f.concat(f.lit("a column of type "), kind)
    )
    return f.named_struct(found, images)[_FIELD]


def find_column(df: DataFrame, name: str) -> tuple[Column, DataType]:
    """Find a column, and its type, by its name or as Spark resolves a name: `image.bytes`.

    A column whose own name has dots comes before the field of a struct.

    Raises:
        SetupError: there is no such column, or there are several.
    """
    own = columns_named(df, name)
    if len(own) > 1:
        raise _several(name)
    if own:
        escaped = own[0].name.replace("`", "``")
        return f.col(f"`{escaped}`"), own[0].dataType
    # Spark logs an error for what it cannot resolve: it is asked only for what may be a field.
    if "." in name or "`" in name:
        try:
            column = f.col(name)
            return column, df.select(column.alias("found")).schema["found"].dataType
        except AnalysisException as error:
            if str(error.getCondition()).startswith("AMBIGUOUS"):
                raise _several(name) from None
    raise SetupError(f"there is no column '{name}'; there are: {', '.join(df.columns)}")


def _several(name: str) -> SetupError:
    return SetupError(
        f"there are several columns '{name}' in the DataFrame; rename or drop all but one first, "
        "before the join that brought them together"
    )


def columns_named(df: DataFrame, name: str) -> list[StructField]:
    """The columns that Spark takes for those of a name: by default in capitals too."""
    if df.sparkSession.conf.get("spark.sql.caseSensitive") == "true":
        return [field for field in df.schema if field.name == name]
    return [field for field in df.schema if field.name.lower() == name.lower()]


def entries_of(column: pa.Array) -> list[Entry]:
    """What a batch of images holds, entry by entry."""
    read = _reader(column.type)
    return [
        _NO_IMAGE if value is None else attempt(partial(read, value), Stage.DECODE)
        for value in column.to_pylist()
    ]


_NO_IMAGE = Failure(Code.IMAGE_EMPTY, Stage.MESSAGE, "the image is null")


def _reader(kind: pa.DataType) -> Callable[[Any], Entry]:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind):
        return lambda content: Item("", content=content)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return lambda uri: Item("", uri=uri)
    if pa.types.is_struct(kind) and kind.get_field_index("nChannels") >= 0:
        return _from_image_struct
    raise SetupError(f"the column is of type {kind}; images are {IMAGES_ARE}")


def _from_image_struct(image: Mapping[str, Any]) -> Entry:
    """The pixels as a BMP, which costs next to nothing and loses nothing: one way for all."""
    try:
        mode, order = _IMAGE_MODES[image["mode"]]
        size = image["width"], image["height"]
        picture = Image.frombytes(mode, size, image["data"], "raw", order)
    except (KeyError, TypeError, ValueError) as error:
        return Failure(
            Code.IMAGE_CORRUPT,
            Stage.DECODE,
            f"the image struct holds no picture of 8 bits a channel: {error!r}",
        )
    file = io.BytesIO()
    picture.save(file, "BMP")
    return Item("", content=file.getvalue())
