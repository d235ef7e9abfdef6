"""Which precision a model runs faster in, measured on the machine where it runs.

The processor's flags do not say it: with `avx512_bf16`, ResNet-50 in bfloat16 ran at 0.7 times the
speed of float32 on one Xeon and at 2.4 times on an EPYC.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from embedstream_core.engine.cache import start_engine
from embedstream_core.engine.engine import Engine
from embedstream_core.media.image.decode import Pixels
from embedstream_core.model_id import PRECISIONS, Precision
from embedstream_core.models.card import ModelCard, PreparedModel
from embedstream_core.models.files.file_formats import is_fixed
from embedstream_core.settings import EngineSettings

__all__ = ["Timing", "in_precision", "time_precisions"]

_log = logging.getLogger(__name__)

# Rounding moves vectors a little; a smaller gain is not worth it, and noise can look like one.
_LEAST_GAIN = 1.15

# Rounds for both precisions together. They are of the engine's own batch size: EfficientNet-Lite0
# in bfloat16 ran at 1.4 times the speed of float32 with 4 pictures and at 0.9 times with 16.
_BUDGET_S = 1.5
_MIN_ROUNDS = 2
# A batch that would take longer is cut.
_LONGEST_PASS_S = 1.5

# On a CPU other tasks run at the same time, so the processor's time is counted, not the wall's.
_CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds per picture of a forward pass in each precision.

    `bfloat16_ms` is None where the model does not run in it; `obstacle` says why.
    """

    float32_ms: float
    bfloat16_ms: float | None
    obstacle: str = ""

    @property
    def gain(self) -> float:
        """How many times as fast bfloat16 is; 0 where it does not run."""
        return self.float32_ms / self.bfloat16_ms if self.bfloat16_ms else 0.0

    @property
    def better(self) -> Precision:
        """The precision to take: bfloat16 where its gain is worth the rounding."""
        return "bfloat16" if self.gain >= _LEAST_GAIN else "float32"

    def __str__(self) -> str:
        rounded = f"{self.bfloat16_ms:.1f}" if self.bfloat16_ms else f"fails ({self.obstacle})"
        return f"float32 {self.float32_ms:.1f} ms a picture, bfloat16 {rounded}"


def in_precision(model: PreparedModel, precision: Precision) -> PreparedModel:
    """Return the model as it runs in a precision; fixed programs stay in float32."""
    return model.in_precision("float32" if is_fixed(model.card.encoder) else precision)


def time_precisions(
    card: ModelCard,
    tensors: Path,
    settings: EngineSettings,
    *,
    cuda_index: int = 0,
) -> Timing:
    """Start a model in each precision and time its forward passes, in turns; takes some seconds.

    A CPU runs them on one thread: waiting for others would be counted as work. `compile` is timed
    as `torch`: compiling twice would take most of a minute.

    Raises:
        SetupError: the device is missing, or the model cannot be loaded on it.
        SystemicError: the model or the device is broken in float32.
    """
    if settings.backend == "compile":
        settings = replace(settings, backend="torch")
    engines: dict[Precision, Engine] = {}
    obstacle = ""
    for precision in PRECISIONS:
        try:
            engines[precision] = start_engine(
                replace(card, precision=precision),
                tensors,
                settings,
                cuda_index=cuda_index,
                cpu_threads=1,
            )
        except Exception as error:
            # Torch and OpenVINO raise types of their own for what they do not compute in bfloat16.
            if precision == "float32":
                raise
            _log.warning("%s does not run in bfloat16", card.model_id, exc_info=True)
            obstacle = str(error).partition("\n")[0]
    times = _time_in_turns(engines, card.preprocessing.crop_px)
    return Timing(times["float32"], times.get("bfloat16"), obstacle)


def _time_in_turns(engines: Mapping[Precision, Engine], side_px: int) -> dict[Precision, float]:
    """Return the least milliseconds per picture of each engine: other work only adds to them."""
    exact = engines["float32"]
    clock = _CLOCKS[exact.device.type]
    one = _pass_s(exact, _noise(1, side_px), clock)
    count = min(exact.batch_size, max(1, int(_LONGEST_PASS_S / one)))
    pictures = _noise(count, side_px)
    least = dict.fromkeys(engines, float("inf"))
    began, rounds = time.perf_counter(), 0
    while rounds < _MIN_ROUNDS or time.perf_counter() - began < _BUDGET_S:
        for precision, engine in engines.items():
            taken_ms = 1000 * _pass_s(engine, pictures, clock) / count
            least[precision] = min(least[precision], taken_ms)
        rounds += 1
    return least


def _pass_s(engine: Engine, pictures: Sequence[Pixels], clock: Callable[[], float]) -> float:
    started = clock()
    engine.embed(pictures)
    return clock() - started


def _noise(count: int, side_px: int) -> list[Pixels]:
    shape = (count, side_px, side_px, 3)
    return [*np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)]
