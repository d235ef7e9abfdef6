"""The model that a configuration names; needs no Spark."""

from __future__ import annotations

from embedstream.config.sections import EncoderConfig
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.prepare import Head, ModelSpec

__all__ = ["build_spec"]


def build_spec(config: EncoderConfig, *, head: Head = "cut") -> ModelSpec:
    """Return what `prepare_model` needs to know of a configured encoder."""
    declared = config.preprocessing
    return ModelSpec(
        config.name,
        config.weights,
        config.sha256,
        ImagePreprocessing(**dict(declared)) if declared else None,
        head=head,
        normalize=config.normalize,
    )
