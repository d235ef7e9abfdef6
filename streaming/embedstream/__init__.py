"""embedstream on Spark: a Kafka topic of images becomes a Delta table of embeddings.

The names here are for batch users; the stream is the command `embedstream`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedstream.config import DecodeConfig, EncoderConfig, PipelineConfig, ReferencesConfig
    from embedstream.dataframe import featurize
    from embedstream.images import read_images
    from embedstream.vectorizer import ImageVectorizer, image_vectorizer

__all__ = [
    "DecodeConfig",
    "EncoderConfig",
    "ImageVectorizer",
    "PipelineConfig",
    "ReferencesConfig",
    "featurize",
    "image_vectorizer",
    "read_images",
]

_HOMES = {
    "DecodeConfig": "config",
    "EncoderConfig": "config",
    "ImageVectorizer": "vectorizer",
    "PipelineConfig": "config",
    "ReferencesConfig": "config",
    "featurize": "dataframe",
    "image_vectorizer": "vectorizer",
    "read_images": "images",
}


# Imported when they are asked for: `embedstream --help` needs neither Spark nor torch.
def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedstream' has no attribute '{name}'")
    return getattr(import_module(f"embedstream.{_HOMES[name]}"), name)
