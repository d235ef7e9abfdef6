"""embedstream on Spark: a Kafka topic of images becomes a Delta table of embeddings.

The names here are for batch users; the stream is the command `embedstream`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedstream.api.columns import ImageVectorizer, image_vectorizer
    from embedstream.api.dataframe import featurize
    from embedstream.api.images import read_images
    from embedstream.api.labels import ImageLabeler, image_labeler
    from embedstream.api.mlflow import log_encoder
    from embedstream.api.spark_ml import ImageFeaturizer, ImagePredictor
    from embedstream.api.sql import register_image_functions
    from embedstream.config.sections import DataFrameConfig, EncoderConfig
    from embedstream.finetuning.job import FinetunedEncoder, TrainingSettings, finetune

__all__ = [
    "DataFrameConfig",
    "EncoderConfig",
    "FinetunedEncoder",
    "ImageFeaturizer",
    "ImageLabeler",
    "ImagePredictor",
    "ImageVectorizer",
    "TrainingSettings",
    "featurize",
    "finetune",
    "image_labeler",
    "image_vectorizer",
    "log_encoder",
    "read_images",
    "register_image_functions",
]

_HOMES = {
    "DataFrameConfig": "config.sections",
    "EncoderConfig": "config.sections",
    "FinetunedEncoder": "finetuning.job",
    "ImageFeaturizer": "api.spark_ml",
    "ImageLabeler": "api.labels",
    "ImagePredictor": "api.spark_ml",
    "ImageVectorizer": "api.columns",
    "TrainingSettings": "finetuning.job",
    "featurize": "api.dataframe",
    "finetune": "finetuning.job",
    "image_labeler": "api.labels",
    "image_vectorizer": "api.columns",
    "log_encoder": "api.mlflow",
    "read_images": "api.images",
    "register_image_functions": "api.sql",
}


# Imported when they are asked for: `embedstream --help` needs neither Spark nor torch.
def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedstream' has no attribute '{name}'")
    return getattr(import_module(f"embedstream.{_HOMES[name]}"), name)
