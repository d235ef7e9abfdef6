"""The cache of this process's engines: the first use of a model starts its engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embedstream_core.engine.engine import Engine, find_device
from embedstream_core.models.card import ModelCard
from embedstream_core.models.prepare import load_model
from embedstream_core.settings import EngineSettings

__all__ = ["get_engine", "start_engine"]

# The folder's path is not part of the key, because one model may be copied to several folders.
_engines: dict[tuple[ModelCard, EngineSettings], Engine] = {}


def get_engine(
    card: ModelCard,
    tensors: Callable[[], Path],
    settings: EngineSettings,
    *,
    cuda_index: int = 0,
    cpu_threads: int | None = None,
) -> Engine:
    """Return a model's engine from the cache, or start it.

    `tensors` returns the path of the prepared tensors; it is called once per process and model.
    Errors are those of `start_engine`.
    """
    key = card, settings
    if key not in _engines:
        _engines[key] = start_engine(
            card, tensors(), settings, cuda_index=cuda_index, cpu_threads=cpu_threads
        )
    return _engines[key]


def start_engine(
    card: ModelCard,
    tensors: Path,
    settings: EngineSettings,
    *,
    cuda_index: int = 0,
    cpu_threads: int | None = None,
) -> Engine:
    """Start and check an engine without caching it.

    Raises:
        SetupError: the device is missing, or the model cannot be loaded on it.
        SystemicError: the model or the device is broken.
    """
    engine = Engine.start(
        load_model(card, tensors),
        device=find_device(settings.device, cuda_index=cuda_index),
        precision=card.precision,
        normalize=card.normalize,
        backend=settings.backend,
        batch_size=settings.batch_size,
        cpu_threads=cpu_threads,
        model_id=card.model_id,
    )
    engine.check()
    return engine
