"""The engines of this process: each is started once, by the first who asks, and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embedstream_core.engine.backends import obstacle
from embedstream_core.engine.engine import Engine, find_device
from embedstream_core.models.card import ModelCard
from embedstream_core.models.files.file_formats import is_fixed
from embedstream_core.models.prepare import load_model
from embedstream_core.settings import EngineSettings

__all__ = ["engine_of", "start_engine"]


# What a folder is called is no part of the key: one model may be copied to several.
_engines: dict[tuple[ModelCard, EngineSettings], Engine] = {}


def engine_of(
    card: ModelCard,
    tensors: Callable[[], Path],
    settings: EngineSettings,
    *,
    cuda_index: int = 0,
    cpu_threads: int | None = None,
) -> Engine:
    """A prepared model's engine; `tensors` says where its file lies, and is asked once a process.

    A backend that cannot be used on this device gives way to torch.

    Raises:
        SetupError: the device is not there, or the model cannot be loaded on it.
        SystemicError: the model or the device is broken.
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
    """Start an engine that is not kept; otherwise as `engine_of`."""
    device = find_device(settings.device, cuda_index=cuda_index)
    hindered = obstacle(settings.backend, device, fixed=is_fixed(card.encoder))
    engine = Engine.start(
        load_model(card, tensors),
        card.preprocessing,
        device=device,
        precision=card.precision,
        backend="torch" if hindered else settings.backend,
        batch_size=settings.batch_size,
        cpu_threads=cpu_threads,
    )
    engine.check(card.preprocessing)
    return engine
