"""The faster precision of a model, measured on the machine where the model runs.

CPU flags do not show it: with `avx512_bf16`, ResNet-50 in bfloat16 ran at 0.7 times the speed of
float32 on one Xeon and at 2.4 times on an EPYC.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from embedstream_core.engine.cache import start_engine
from embedstream_core.engine.engine import Engine
from embedstream_core.media.modalities import MODALITIES
from embedstream_core.model_id import PRECISIONS, Precision
from embedstream_core.models.card import ModelCard, PreparedModel
from embedstream_core.models.files.file_formats import is_fixed
from embedstream_core.settings import EngineSettings

__all__ = ["Timing", "apply_precision", "time_precisions"]

_log = logging.getLogger(__name__)

# Rounding moves vectors a little; a smaller gain is not worth it and may be noise.
_LEAST_GAIN = 1.15

# Rounds time both precisions with the engine's own batch size: EfficientNet-Lite0 in bfloat16 ran
# at 1.4 times the speed of float32 with 4 images and at 0.9 times with 16.
_BUDGET_S = 1.5
_MIN_ROUNDS = 2
# A model batch that would take longer is made smaller.
_LONGEST_PASS_S = 1.5

# Other tasks run on a CPU at the same time, so its clock counts this process's time only.
_CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of a forward pass in each precision, for one image, text or clip.

    `bfloat16_ms` is None if the model does not run in bfloat16; `obstacle` is the reason.
    """

    float32_ms: float
    bfloat16_ms: float | None
    obstacle: str = ""

    @property
    def gain(self) -> float:
        """Speed in bfloat16 relative to float32; 0 if the model does not run in bfloat16."""
        return self.float32_ms / self.bfloat16_ms if self.bfloat16_ms else 0.0

    @property
    def better(self) -> Precision:
        """The precision to use: bfloat16 if its gain is worth the rounding."""
        return "bfloat16" if self.gain >= _LEAST_GAIN else "float32"

    def __str__(self) -> str:
        rounded = f"{self.bfloat16_ms:.1f}" if self.bfloat16_ms else f"fails ({self.obstacle})"
        return f"float32 {self.float32_ms:.1f} ms a sample, bfloat16 {rounded}"


def apply_precision(model: PreparedModel, precision: Precision) -> PreparedModel:
    """Return the model in a precision; programs stay in float32."""
    return model.in_precision("float32" if is_fixed(model.card.encoder) else precision)


def time_precisions(
    card: ModelCard,
    tensors: Path,
    settings: EngineSettings,
    *,
    cuda_index: int = 0,
) -> Timing:
    """Start a model in each precision and time forward passes in turns; takes some seconds.

    On a CPU each pass uses one thread, because waiting for other threads would count as work.
    `compile` is timed as `torch`: compiling twice would take most of a minute.

    Raises:
        SetupError: the device is missing, or the model cannot be loaded on it.
        SystemicError: the model or the device is broken in float32.
    """
    if settings.backend == "compile":
        settings = replace(settings, backend="torch")
    engines: dict[Precision, Engine] = {}
    obstacle = ""
    for precision in PRECISIONS:
        in_precision = replace(card, precision=precision)
        try:
            engines[precision] = start_engine(
                in_precision, tensors, settings, cuda_index=cuda_index, cpu_threads=1
            )
        except Exception as error:
            # torch and OpenVINO raise various types for operators without bfloat16.
            if precision == "float32":
                raise
            _log.warning("%s does not run in bfloat16", card.model_id, exc_info=True)
            obstacle = str(error).partition("\n")[0]
    times = _time_engines(engines)
    return Timing(times["float32"], times.get("bfloat16"), obstacle)


def _time_engines(engines: Mapping[Precision, Engine]) -> dict[Precision, float]:
    """Return the least milliseconds per sample of each engine: other work can only add to them.

    A model of several modalities is timed with the first.
    """
    exact = engines["float32"]
    clock = _CLOCKS[exact.device.type]
    modality, preprocessing = next(iter(exact.inputs.items()))
    probe = MODALITIES[modality].make_probes(preprocessing)[1]

    def time_pass_s(engine: Engine, count: int) -> float:
        started = clock()
        engine.embed([probe] * count, modality)
        return clock() - started

    most = exact.batch_sizes[modality]
    count = min(most, max(1, int(_LONGEST_PASS_S / time_pass_s(exact, 1))))
    least = dict.fromkeys(engines, float("inf"))
    began, rounds = time.perf_counter(), 0
    while rounds < _MIN_ROUNDS or time.perf_counter() - began < _BUDGET_S:
        for precision, engine in engines.items():
            least[precision] = min(least[precision], 1000 * time_pass_s(engine, count) / count)
        rounds += 1
    return least
