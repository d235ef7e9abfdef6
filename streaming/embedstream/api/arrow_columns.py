"""Columns that a function on the workers makes of columns, in Arrow batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql.pandas.functions import arrow_udf
from pyspark.sql.types import DataType

__all__ = ["ColumnFunction", "column_function"]

ColumnFunction = Any
"""Takes columns, or their names, and gives a column; `spark.udf.register` takes it too."""


def column_function(
    function: Callable[[Iterator[Any]], Iterator[pa.Array]], kind: DataType
) -> ColumnFunction:
    """
    `function` gets a partition's batches: arrays, or tuples of them where it is made for several
    columns, as its annotations say. It gives an array of type `kind` and the same length for each.
    """
    # What Spark takes for deterministic it runs again for each filter over its column.
    return arrow_udf(function, kind).asNondeterministic()  # type: ignore[call-overload]
