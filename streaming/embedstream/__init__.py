"""embedstream on Spark: a Kafka topic of images becomes a Delta table of embeddings.

The names here are for batch users; the stream is the command `embedstream`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedstream.config import BatchConfig, EncoderConfig
    from embedstream.dataframe import featurize
    from embedstream.finetuning import FinetunedEncoder, TrainingSettings, finetune
    from embedstream.images import read_images
    from embedstream.labeler import ImageLabeler, image_labeler
    from embedstream.ml import ImageFeaturizer, ImagePredictor
    from embedstream.registry import log_encoder
    from embedstream.sql import register_image_functions
    from embedstream.vectorizer import ImageVectorizer, image_vectorizer

__all__ = [
    "BatchConfig",
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
    "BatchConfig": "config",
    "EncoderConfig": "config",
    "FinetunedEncoder": "finetuning",
    "ImageFeaturizer": "ml",
    "ImageLabeler": "labeler",
    "ImagePredictor": "ml",
    "ImageVectorizer": "vectorizer",
    "TrainingSettings": "finetuning",
    "featurize": "dataframe",
    "finetune": "finetuning",
    "image_labeler": "labeler",
    "image_vectorizer": "vectorizer",
    "log_encoder": "registry",
    "read_images": "images",
    "register_image_functions": "sql",
}


# Imported when they are asked for: `embedstream --help` needs neither Spark nor torch.
def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedstream' has no attribute '{name}'")
    return getattr(import_module(f"embedstream.{_HOMES[name]}"), name)
