"""The windows that an audio encoder expects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["AudioPreprocessing"]


@dataclass(frozen=True)
class AudioPreprocessing:
    """The input that an audio encoder expects: mono, float32 in -1 to 1.

    A clip is resampled to `sample_rate_hz` and cut into windows of `window_samples`, which begin
    every `hop_samples`. The last window may be shorter; below `min_samples` it is padded with
    silence.
    """

    sample_rate_hz: int
    window_samples: int
    hop_samples: int
    min_samples: int = 1
    modality: Literal["audio"] = field(default="audio", repr=False)
