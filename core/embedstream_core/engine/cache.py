"""The cache of this process's engines: the first use of a model starts its engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from embedstream_core.engine.engine import Engine, find_device
from embedstream_core.models.card import ModelCard
from embedstream_core.models.prepare import load_model
from embedstream_core.settings import EngineSettings

__all__ = ["get_engine", "start_engine"]

# A stream whose model was swapped would otherwise keep the old one in each worker, on its GPU too.
# Queries that take turns in a session keep theirs.
_UNUSED_S = 600.0


@dataclass(slots=True)
class _Cached:
    engine: Engine
    used_at: float


# The folder's path is not part of the key, because one model may be copied to several folders.
_engines: dict[tuple[ModelCard, EngineSettings], _Cached] = {}


def get_engine(
    card: ModelCard,
    tensors: Callable[[], Path],
    settings: EngineSettings,
    *,
    cuda_index: int = 0,
    cpu_threads: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """Return a model's engine from the cache, or start it.

    `tensors` returns the path of the prepared tensors; it is called whenever the engine is started.
    Engines that were not used for 10 minutes are dropped. Errors are those of `start_engine`.
    """
    key, now = (card, settings), clock()
    for other, cached in [*_engines.items()]:
        if other != key and now - cached.used_at > _UNUSED_S:
            del _engines[other]
    if key in _engines:
        _engines[key].used_at = now
    else:
        engine = start_engine(
            card, tensors(), settings, cuda_index=cuda_index, cpu_threads=cpu_threads
        )
        _engines[key] = _Cached(engine, clock())
    return _engines[key].engine


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
        gpu=settings.gpu,
        batch_size=settings.batch_size,
        cpu_threads=cpu_threads,
        model_id=card.model_id,
    )
    engine.check()
    return engine
