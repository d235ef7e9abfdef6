"""Clips of 1 to 30 seconds, with pauses as in speech, as WAV, FLAC, MP3 and Ogg Vorbis in turns."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt
import soundfile

__all__ = ["sounds"]

SHORTEST_S, LONGEST_S = 1.0, 30.0
KINDS = (
    ("WAV", "PCM_16", 44_100, 2),
    ("FLAC", "PCM_16", 48_000, 2),
    ("MP3", "MPEG_LAYER_III", 44_100, 2),
    ("OGG", "VORBIS", 16_000, 1),
)
"""A container and its subtype as soundfile names them, a sample rate, and channels."""

_BLOCK = 4096


def sounds(count: int, *, seed: int = 0) -> Iterator[bytes]:
    """Files of synthetic voices, the same ones each time; all lengths are equally frequent."""
    choose = random.Random(seed)
    for container, subtype, rate_hz, channels in islice(cycle(KINDS), count):
        clip = _clip(choose.uniform(SHORTEST_S, LONGEST_S), rate_hz, channels, choose)
        file = io.BytesIO()
        with soundfile.SoundFile(
            file, "w", rate_hz, channels, format=container, subtype=subtype
        ) as sound:
            # libsndfile overruns its stack when it encodes a second of Vorbis or more at once.
            for start in range(0, len(clip), _BLOCK):
                sound.write(clip[start : start + _BLOCK])
        yield file.getvalue()


def _clip(
    seconds: float, rate_hz: int, channels: int, choose: random.Random
) -> npt.NDArray[np.float32]:
    """Harmonics of a wavering pitch that comes and goes like syllables, and noise."""
    noise = np.random.default_rng(choose.randrange(2**32))
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * (choose.uniform(90, 240) * times + 3 * np.sin(2 * np.pi * 0.7 * times))
    voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 8))
    syllables = np.clip(np.sin(2 * np.pi * choose.uniform(2, 4) * times), 0, 1)
    heard = 0.2 * voice * syllables + 0.01 * noise.normal(size=len(times))
    return np.repeat(heard[:, None], channels, axis=1).astype(np.float32)
