"""A pandas UDF around `encode`, with the model in a global that each worker loads once.

The form follows PySpark's documentation of `pandas_udf`
(https://spark.apache.org/docs/latest/api/python/reference/pyspark.sql/api/pyspark.sql.functions.pandas_udf.html).
`encode` has its default batch size, 32, and an Arrow batch Spark's default of 10,000 rows. Spark
starts a Python worker for each core and gives each one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.functions import pandas_udf  # type: ignore[attr-defined]

from minilm import load_model
from protocol import EMBEDDINGS, Backend, Precision, Run, serve
from spark import local_session, runner


@contextmanager
def prepare(contents: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with local_session() as spark:

        @pandas_udf("array<float>")
        def embed(texts: pd.Series) -> pd.Series:
            model = load_model(precision)
            return pd.Series(list(model.encode(texts.tolist(), show_progress_bar=False)))

        yield runner(
            spark,
            contents,
            lambda column: embed(F.decode(F.col(column), "UTF-8")),
            size=EMBEDDINGS["minilm"],
        )


if __name__ == "__main__":
    serve(prepare, ["pyspark", "pandas", "sentence-transformers", "transformers"])
