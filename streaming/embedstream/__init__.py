"""embedstream on Spark: a Kafka topic of images, texts and audio becomes a table of embeddings.

The names here are for batch users; the command `embedstream` runs the stream.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedstream.api.columns import Vectorizer, vectorizer
    from embedstream.api.dataframe import featurize
    from embedstream.api.images import read_images
    from embedstream.api.labels import ImageLabeler, image_labeler
    from embedstream.api.mlflow import log_encoder
    from embedstream.api.spark_ml import (
        AudioFeaturizer,
        ImageFeaturizer,
        ImagePredictor,
        TextFeaturizer,
    )
    from embedstream.api.sql import register_functions
    from embedstream.config.sections import DataFrameConfig, EncoderConfig
    from embedstream.finetuning.job import FinetunedEncoder, TrainingSettings, finetune
    from embedstream.search.nearest import Searcher, nearest

__all__ = [
    "AudioFeaturizer",
    "DataFrameConfig",
    "EncoderConfig",
    "FinetunedEncoder",
    "ImageFeaturizer",
    "ImageLabeler",
    "ImagePredictor",
    "Searcher",
    "TextFeaturizer",
    "TrainingSettings",
    "Vectorizer",
    "featurize",
    "finetune",
    "image_labeler",
    "log_encoder",
    "nearest",
    "read_images",
    "register_functions",
    "vectorizer",
]

_HOMES = {
    "api.columns": ["Vectorizer", "vectorizer"],
    "api.dataframe": ["featurize"],
    "api.images": ["read_images"],
    "api.labels": ["ImageLabeler", "image_labeler"],
    "api.mlflow": ["log_encoder"],
    "api.spark_ml": ["AudioFeaturizer", "ImageFeaturizer", "ImagePredictor", "TextFeaturizer"],
    "api.sql": ["register_functions"],
    "config.sections": ["DataFrameConfig", "EncoderConfig"],
    "finetuning.job": ["FinetunedEncoder", "TrainingSettings", "finetune"],
    "search.nearest": ["Searcher", "nearest"],
}


# Imported at the first use: `embedstream --help` needs neither Spark nor torch.
def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"embedstream.{home}"), name)
    raise AttributeError(f"module 'embedstream' has no attribute '{name}'")
