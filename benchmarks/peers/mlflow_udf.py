"""`mlflow.pyfunc.spark_udf` of a logged pyfunc model that decodes images and runs the network.

The form follows MLflow's documentation of `spark_udf`
(https://mlflow.org/docs/latest/api_reference/python_api/mlflow.pyfunc.html#mlflow.pyfunc.spark_udf)
and of custom pyfunc models with artifacts
(https://mlflow.org/docs/latest/api_reference/python_api/mlflow.pyfunc.html#creating-custom-pyfunc-models).
MLflow calls `predict` with each Arrow batch as a DataFrame, so the rows of an Arrow batch are the
model's batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema
from numpy.typing import NDArray

from protocol import Backend, Precision, Run, serve
from resnet import architecture, embed, load_model, preprocess
from spark import local_session, runner

ARROW_RECORDS = 100


class Featurizer(PythonModel):
    def __init__(self, precision: Precision) -> None:
        self.precision = precision

    def load_context(self, context: PythonModelContext) -> None:
        self.model = architecture(self.precision)
        self.model.load_state_dict(torch.load(context.artifacts["weights"], weights_only=True))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, object] | None = None,
    ) -> NDArray[np.float32]:
        images = torch.stack([preprocess(content) for content in model_input["content"]])
        return embed(self.model, images)


@contextmanager
def prepare(images: Path, precision: Precision, backend: Backend) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as store, local_session(ARROW_RECORDS) as spark:
        predict = mlflow.pyfunc.spark_udf(
            spark,
            _logged_model(Path(store), precision),
            result_type="array<float>",
            env_manager="local",
        )
        yield runner(spark, images, predict)


def _logged_model(store: Path, precision: Precision) -> str:
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("peer", (store / "artifacts").as_uri())
    )
    weights = store / "resnet50.pt"
    torch.save(load_model(precision).state_dict(), weights)
    logged = mlflow.pyfunc.log_model(
        name="resnet50",
        python_model=Featurizer(precision),
        artifacts={"weights": str(weights)},
        signature=ModelSignature(inputs=Schema([ColSpec("binary", "content")])),
        pip_requirements=["torch", "torchvision", "pillow"],
    )
    return str(logged.model_uri)


if __name__ == "__main__":
    serve(prepare, ["mlflow", "pyspark", "pandas"])
