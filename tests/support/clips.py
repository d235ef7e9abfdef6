"""Clips of sound, always the same ones, as files of all formats."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import numpy.typing as npt
import soundfile

__all__ = ["FILES", "Samples", "encode_clip", "make_clip", "make_file"]

Samples = npt.NDArray[np.float32]

RATE_HZ = 44_100

FILES = {
    "pcm_u8": ("WAV", "PCM_U8"),
    "pcm_16": ("WAV", "PCM_16"),
    "pcm_24": ("WAV", "PCM_24"),
    "pcm_32": ("WAV", "PCM_32"),
    "float": ("WAV", "FLOAT"),
    "double": ("WAV", "DOUBLE"),
    "a_law": ("WAV", "ALAW"),
    "mu_law": ("WAV", "ULAW"),
    "extensible": ("WAVEX", "PCM_16"),
    "flac_16": ("FLAC", "PCM_16"),
    "flac_24": ("FLAC", "PCM_24"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
"""The container and the subtype, as soundfile names them, of every kind that is decoded."""


def make_clip(
    seconds: float, *, rate_hz: int = RATE_HZ, channels: int = 2, seed: int = 0
) -> Samples:
    """Return a tone that rises, with some noise, of shape (frames, channels)."""
    random = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    pitch = random.uniform(100, 300)
    tone = 0.3 * np.sin(2 * np.pi * (pitch + 60 * times) * times)
    noise = 0.02 * random.normal(size=(len(times), channels))
    return (tone[:, None] * np.linspace(1, 0.5, channels) + noise).astype(np.float32)


def encode_clip(
    clip: npt.NDArray[np.floating], kind: str = "pcm_16", *, rate_hz: int = RATE_HZ
) -> bytes:
    container, subtype = FILES[kind]
    file = io.BytesIO()
    # libsndfile overruns its stack when it encodes a second of Vorbis or more at once.
    with soundfile.SoundFile(
        file, "w", rate_hz, clip.shape[1], format=container, subtype=subtype
    ) as sound:
        for start in range(0, len(clip), 4096):
            sound.write(clip[start : start + 4096])
    return file.getvalue()


@cache
def make_file(kind: str, seconds: float = 1.0) -> bytes:
    """Return a file in stereo; Opus has a rate of its own."""
    rate_hz = 48_000 if kind == "opus" else RATE_HZ
    return encode_clip(make_clip(seconds, rate_hz=rate_hz), kind, rate_hz=rate_hz)
