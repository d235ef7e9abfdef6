"""The windows that an audio encoder expects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["AudioPreprocessing", "cut_windows"]


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

    def find_problem(self) -> str | None:
        """Return what is wrong with these values, or None if nothing is."""
        for name in ("sample_rate_hz", "window_samples", "hop_samples", "min_samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                return f"{name} is a whole number above 0, not {value!r}"
        for name in ("hop_samples", "min_samples"):
            if (value := getattr(self, name)) > self.window_samples:
                return f"{name} is at most window_samples, {self.window_samples}, not {value}"
        return None


def cut_windows(
    samples: npt.NDArray[np.float32], preprocessing: AudioPreprocessing
) -> tuple[npt.NDArray[np.float32], ...]:
    """Return the windows of a clip of that sample rate; at least one, even of an empty clip.

    Together they hold all of its samples. They are views of it, except for padded ones.
    """
    window, hop = preprocessing.window_samples, preprocessing.hop_samples
    # Each but the first has samples that no window before it has.
    starts = range(0, max(1, len(samples) - window + hop), hop)
    windows = [samples[start : start + window] for start in starts]
    missing = preprocessing.min_samples - len(windows[-1])
    if missing > 0:
        windows[-1] = np.pad(windows[-1], (0, missing))
    return tuple(windows)
