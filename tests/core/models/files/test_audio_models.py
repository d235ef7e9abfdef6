"""Audio models of transformers in folders: their vectors are transformers' own, clip by clip."""

from __future__ import annotations

from collections.abc import Callable
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
from embedstream_core.models.files.audio_models import load_audio, pack_audio, read_audio_inputs

transformers: Any = pytest.importorskip("transformers")

HIDDEN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def save(folder: Path, kind: Callable[[Any], Any], config: Any, extractor: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        # Biases and the like are zero in new models, and would hide errors.
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)


def waves(name: str, norm: str, folder: Path) -> None:
    config = getattr(transformers, f"{name}Config")(
        **HIDDEN,
        intermediate_size=32,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 4),
        conv_stride=(5, 4, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=3,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    save(folder, getattr(transformers, f"{name}Model"), config, extractor)


def ast(folder: Path) -> None:
    config = transformers.ASTConfig(**HIDDEN, intermediate_size=32, max_length=64, num_mel_bins=32)
    extractor = transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    save(folder, transformers.ASTModel, config, extractor)


CLAP_AUDIO = {
    "num_mel_bins": 16,
    "spec_size": 64,
    "patch_size": 4,
    "patch_stride": (4, 4),
    "window_size": 4,
    "hidden_size": 32,
    "patch_embeds_hidden_size": 8,
    "depths": (1, 1, 1),
    "num_attention_heads": (1, 1, 1),
    "num_hidden_layers": 3,
    "projection_dim": 12,
}


def clap(truncation: str, folder: Path) -> None:
    fusion = truncation == "fusion"
    audio = {**CLAP_AUDIO, "enable_fusion": fusion, "enable_patch_fusion": fusion}
    text = {**HIDDEN, "intermediate_size": 32, "vocab_size": 50, "projection_dim": 12}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    save(folder, transformers.ClapModel, config, clap_extractor(truncation))


def clap_audio(folder: Path) -> None:
    config = transformers.ClapAudioConfig(**CLAP_AUDIO)
    save(folder, transformers.ClapAudioModelWithProjection, config, clap_extractor("rand_trunc"))


def clap_extractor(truncation: str) -> Any:
    return transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16_000,
        max_length_s=1,
        frequency_max=8_000,
        truncation=truncation,
    )


def whisper(folder: Path) -> None:
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=50,
        num_mel_bins=16,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    save(folder, transformers.WhisperForConditionalGeneration, config, extractor)


def embed_waves(folder: Path, extractor: Any, clip: Samples) -> torch.Tensor:
    model = transformers.AutoModel.from_pretrained(folder)
    values = extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values
    return model(values).last_hidden_state.mean(1)


def embed_ast(folder: Path, extractor: Any, clip: Samples) -> torch.Tensor:
    model = transformers.ASTModel.from_pretrained(folder)
    return model(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).pooler_output


def embed_clap(folder: Path, extractor: Any, clip: Samples) -> torch.Tensor:
    model = transformers.ClapModel.from_pretrained(folder)
    features = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    return model.get_audio_features(**features).pooler_output


def embed_clap_audio(folder: Path, extractor: Any, clip: Samples) -> torch.Tensor:
    model = transformers.ClapAudioModelWithProjection.from_pretrained(folder)
    return model(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).audio_embeds


def embed_whisper(folder: Path, extractor: Any, clip: Samples) -> torch.Tensor:
    model = transformers.WhisperModel.from_pretrained(folder)
    features = extractor(
        clip, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    states = model.encoder(features.input_features).last_hidden_state
    # The extractor's mask has a value for each of its frames, of which the encoder takes two.
    mask = features.attention_mask[:, ::2, None]
    return (states * mask).sum(1) / mask.sum(1)


MODELS: dict[str, tuple[Callable[[Path], None], Callable[[Path, Any, Samples], torch.Tensor]]] = {
    "wav2vec2": (lambda folder: waves("Wav2Vec2", "group", folder), embed_waves),
    "wav2vec2-layer": (lambda folder: waves("Wav2Vec2", "layer", folder), embed_waves),
    "hubert": (lambda folder: waves("Hubert", "group", folder), embed_waves),
    "wavlm": (lambda folder: waves("WavLM", "layer", folder), embed_waves),
    "ast": (ast, embed_ast),
    "clap": (lambda folder: clap("rand_trunc", folder), embed_clap),
    "clap-fused": (lambda folder: clap("fusion", folder), embed_clap),
    "clap-audio": (clap_audio, embed_clap_audio),
    "whisper": (whisper, embed_whisper),
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
    whisper(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert "cannot be opened" in refusal(tmp_path)
    assert "save_pretrained" in refusal(tmp_path)


def test_an_extractor_of_another_model_is_refused(tmp_path: Path) -> None:
    whisper(tmp_path)
    transformers.ASTFeatureExtractor(num_mel_bins=32).save_pretrained(tmp_path)
    assert "ASTFeatureExtractor, not WhisperFeatureExtractor" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("make", "extractor", "message"),
    [
        (whisper, {"feature_size": 16, "chunk_length": 30}, "chunk_length 30"),
        (whisper, {"feature_size": 16, "chunk_length": 2, "dither": 0.1}, "dither 0.1"),
        (
            ast,
            {"max_length": 64, "num_mel_bins": 16, "sampling_rate": 8000},
            "sampling_rate 8000, not 16000",
        ),
        (ast, {"num_mel_bins": 32}, "max_length 1024, where the model has 64"),
        (clap_audio, {"truncation": "other"}, "truncation 'other'"),
        (MODELS["wavlm"][0], {"feature_size": 80}, "feature_size 80, not 1"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(
    make: Callable[[Path], None], extractor: dict[str, Any], message: str, tmp_path: Path
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
    with pytest.raises(SetupError, match=r"its weights lack encoder\.layer_norm\.weight$"):
        load(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    ast(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SetupError, match="pickles, and are not opened"):
        pack_audio(tmp_path)
