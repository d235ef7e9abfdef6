"""A scalar iterator pandas UDF: a broadcast state dict, and a DataLoader for each Arrow batch.

The form follows Databricks' notebooks for distributed image inference with PyTorch
(https://docs.databricks.com/applications/deep-learning/inference/model-inference.html and
https://docs.databricks.com/applications/machine-learning/reference-solutions/images-etl-inference.html):
the first gives the broadcast, `DataLoader(batch_size=500, num_workers=8)` and Arrow batches of
2048 rows, and the second the iterator, which loads the model once for a partition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pyspark.sql.functions import pandas_udf  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from protocol import Backend, Precision, Run, serve
from resnet import architecture, embed, load_model, preprocess
from spark import local_session, runner

ARROW_RECORDS = 2048
BATCH = 500
LOADERS = 8


class ImageDataset(Dataset[Tensor]):
    def __init__(self, contents: pd.Series) -> None:
        self.contents = contents

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> Tensor:
        return preprocess(self.contents.iloc[index])


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with local_session(ARROW_RECORDS) as spark:
        state = spark.sparkContext.broadcast(load_model(precision).state_dict())

        @pandas_udf("array<float>")
        def featurize(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
            model = architecture(precision)
            model.load_state_dict(state.value)
            for contents in batches:
                loader = DataLoader(ImageDataset(contents), batch_size=BATCH, num_workers=LOADERS)
                yield pd.Series([row for batch in loader for row in embed(model, batch)])

        yield runner(spark, images, featurize)


if __name__ == "__main__":
    serve(prepare, ["pyspark", "pandas"])
