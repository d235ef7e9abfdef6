"""Audio models of transformers in folders: their vectors are transformers' own, clip by clip."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clips import Samples, make_clip
from embedstream_core.errors import SetupError
from embedstream_core.media.audio.modality import AUDIO
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.models.folders.audio_models import load_audio, pack_audio, read_audio_inputs
from small_audio_models import (
    save_ast,
    save_clap,
    save_clap_audio,
    save_waves,
    save_whisper,
)

transformers: Any = pytest.importorskip("transformers")


def embed_waves(folder: Path, extractor: Any, clip: Samples) -> Any:
    model = transformers.AutoModel.from_pretrained(folder)
    values = extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values
    return model(values).last_hidden_state.mean(1)


def embed_ast(folder: Path, extractor: Any, clip: Samples) -> Any:
    model = transformers.ASTModel.from_pretrained(folder)
    return model(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).pooler_output


def embed_clap(folder: Path, extractor: Any, clip: Samples) -> Any:
    model = transformers.ClapModel.from_pretrained(folder)
    features = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    return model.get_audio_features(**features).pooler_output


def embed_clap_audio(folder: Path, extractor: Any, clip: Samples) -> Any:
    model = transformers.ClapAudioModelWithProjection.from_pretrained(folder)
    return model(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).audio_embeds


def embed_whisper(folder: Path, extractor: Any, clip: Samples) -> Any:
    model = transformers.WhisperModel.from_pretrained(folder)
    features = extractor(
        clip, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    states = model.encoder(features.input_features).last_hidden_state
    # The extractor's mask has a value for each of its frames, of which the encoder takes two.
    mask = features.attention_mask[:, ::2, None]
    return (states * mask).sum(1) / mask.sum(1)


MODELS: dict[str, tuple[Callable[[Path], Path], Callable[[Path, Any, Samples], Any]]] = {
    "wav2vec2": (save_waves, embed_waves),
    "wav2vec2-layer": (partial(save_waves, norm="layer"), embed_waves),
    "hubert": (partial(save_waves, name="Hubert"), embed_waves),
    "wavlm": (partial(save_waves, name="WavLM", norm="layer"), embed_waves),
    "ast": (save_ast, embed_ast),
    "clap": (save_clap, embed_clap),
    "clap-fused": (partial(save_clap, truncation="fusion"), embed_clap),
    "clap-audio": (save_clap_audio, embed_clap_audio),
    "whisper": (save_whisper, embed_whisper),
}


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(name)
    MODELS[name][0](path)
    return path


def load(folder: Path) -> nn.Module:
    packed = folder / "packed.zip"
    packed.write_bytes(pack_audio(folder))
    return load_audio(packed).eval()


def make_clips(preprocessing: AudioPreprocessing) -> list[Samples]:
    """Return clips of several lengths, up to a window; two have the same one."""
    lengths = [0.3, 0.55, 0.55, 1.0]
    seconds = preprocessing.window_samples / preprocessing.sample_rate_hz
    return [
        make_clip(part * min(seconds, 2), rate_hz=16_000, channels=1, seed=seed)[:, 0]
        for seed, part in enumerate(lengths)
    ]


@torch.inference_mode()
def embed(model: nn.Module, clips: list[Samples]) -> torch.Tensor:
    samples, lengths = (torch.from_numpy(array) for array in AUDIO.collate(clips))
    vectors: torch.Tensor = model(samples, lengths)
    return vectors


@torch.inference_mode()
def test_vectors_are_transformers_own(name: str, folder: Path) -> None:
    (preprocessing,) = read_audio_inputs(folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    clips = make_clips(preprocessing)
    vectors = embed(load(folder), clips)
    expected = torch.cat([MODELS[name][1](folder, extractor, clip) for clip in clips])
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)
    # Else the comparison would show little.
    assert (vectors - vectors.mean(0)).norm(dim=1).min() > 1e-3


def test_a_vector_does_not_depend_on_its_neighbours(folder: Path) -> None:
    model = load(folder)
    (preprocessing,) = read_audio_inputs(folder)
    clips = make_clips(preprocessing)
    alone = torch.cat([embed(model, [clip]) for clip in clips])
    loud = [100 * clip for clip in clips]
    for order in ([3, 1, 0, 2], [2, 0]):
        together = embed(model, [clips[index] for index in order] + [loud[3], loud[0]])
        torch.testing.assert_close(together[: len(order)], alone[order], rtol=1e-4, atol=1e-5)


def test_the_shortest_clip_and_silence_have_vectors(folder: Path) -> None:
    model = load(folder)
    (preprocessing,) = read_audio_inputs(folder)
    shortest = np.full(preprocessing.min_samples, 0.1, np.float32)
    for clip in (shortest, np.zeros(8000, np.float32)):
        assert embed(model, [clip]).isfinite().all()


def test_a_model_in_bfloat16_takes_samples_in_float32(folder: Path) -> None:
    model = load(folder)
    (preprocessing,) = read_audio_inputs(folder)
    clips = make_clips(preprocessing)
    exact = embed(model, clips)
    rounded = embed(model.to(torch.bfloat16), clips)
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded).min() > 0.98


def test_packing_gives_the_same_bytes(folder: Path) -> None:
    assert pack_audio(folder) == pack_audio(folder)


def test_windows_are_those_of_the_model(name: str, folder: Path) -> None:
    expected = {
        "ast": AudioPreprocessing(16_000, 63 * 160 + 400, 63 * 160 + 400, 400),
        "clap": AudioPreprocessing(16_000, 16_000, 16_000),
        "clap-fused": AudioPreprocessing(16_000, 16_000, 16_000),
        "clap-audio": AudioPreprocessing(16_000, 16_000, 16_000),
        "whisper": AudioPreprocessing(16_000, 32_000, 32_000),
    }
    # Three convolutions: ((4 - 1) * 4 + 8 - 1) * 5 + 10 samples for one frame.
    waves = AudioPreprocessing(16_000, 160_000, 160_000, (3 * 4 + 8 - 1) * 5 + 10)
    assert read_audio_inputs(folder) == (expected.get(name, waves),)


def test_the_extractor_may_be_in_a_processors_file(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    expected = read_audio_inputs(tmp_path)
    alone = tmp_path / "preprocessor_config.json"
    settings = {"feature_extractor": json.loads(alone.read_bytes())}
    alone.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    assert read_audio_inputs(tmp_path) == expected
    load(tmp_path)


# What is not supported.


def refusal(folder: Path) -> str:
    with pytest.raises(SetupError) as caught:
        read_audio_inputs(folder)
    return str(caught.value)


def test_another_model_is_refused(tmp_path: Path) -> None:
    transformers.ViTConfig().save_pretrained(tmp_path)
    assert "holds a model of type 'vit'; those of audio" in refusal(tmp_path)
    with pytest.raises(SetupError, match="holds a model of type 'vit'"):
        pack_audio(tmp_path)


def test_a_missing_extractor_is_refused(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert "cannot be opened" in refusal(tmp_path)
    assert "save_pretrained" in refusal(tmp_path)


def test_an_extractor_of_another_model_is_refused(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    transformers.ASTFeatureExtractor(num_mel_bins=32).save_pretrained(tmp_path)
    assert "ASTFeatureExtractor, not WhisperFeatureExtractor" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("make", "extractor", "message"),
    [
        (save_whisper, {"feature_size": 16, "chunk_length": 30}, "chunk_length 30"),
        (save_whisper, {"feature_size": 16, "chunk_length": 2, "dither": 0.1}, "dither 0.1"),
        (
            save_ast,
            {"max_length": 64, "num_mel_bins": 16, "sampling_rate": 8000},
            "sampling_rate 8000, not 16000",
        ),
        (save_ast, {"num_mel_bins": 32}, "max_length 1024, where the model has 64"),
        (save_clap_audio, {"truncation": "other"}, "truncation 'other'"),
        (MODELS["wavlm"][0], {"feature_size": 80}, "feature_size 80, not 1"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(
    make: Callable[[Path], Path], extractor: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    kind = type(transformers.AutoFeatureExtractor.from_pretrained(tmp_path))
    kind(**extractor).save_pretrained(tmp_path)
    assert message in refusal(tmp_path)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    MODELS["wav2vec2"][0](tmp_path)
    path = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(path)
    del state["encoder.layer_norm.weight"]
    # Only training needs this one, and published models lack it.
    del state["masked_spec_embed"]
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(SetupError, match=r"its weights lack encoder\.layer_norm\.weight; save"):
        load(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    save_ast(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SetupError, match="pickles, and are not opened"):
        pack_audio(tmp_path)
