"""Small audio models of transformers in folders, always the same ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

__all__ = ["save_ast", "save_clap", "save_clap_audio", "save_waves", "save_whisper"]

transformers: Any = pytest.importorskip("transformers")

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def _save(folder: Path, kind: Callable[[Any], Any], config: Any, extractor: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        # Biases and the like are zero in new models, and would hide errors.
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def save_waves(folder: Path, *, name: str = "Wav2Vec2", norm: str = "group") -> Path:
    config = getattr(transformers, f"{name}Config")(
        **_SIZES,
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
    return _save(folder, getattr(transformers, f"{name}Model"), config, extractor)


def save_ast(folder: Path) -> Path:
    config = transformers.ASTConfig(**_SIZES, intermediate_size=32, max_length=64, num_mel_bins=32)
    extractor = transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    return _save(folder, transformers.ASTModel, config, extractor)


_CLAP_AUDIO = {
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


def save_clap(folder: Path, *, truncation: str = "rand_trunc") -> Path:
    fusion = truncation == "fusion"
    audio = {**_CLAP_AUDIO, "enable_fusion": fusion, "enable_patch_fusion": fusion}
    text = {**_SIZES, "intermediate_size": 32, "vocab_size": 50, "projection_dim": 12}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    return _save(folder, transformers.ClapModel, config, _clap_extractor(truncation))


def save_clap_audio(folder: Path) -> Path:
    config = transformers.ClapAudioConfig(**_CLAP_AUDIO)
    return _save(
        folder, transformers.ClapAudioModelWithProjection, config, _clap_extractor("rand_trunc")
    )


def _clap_extractor(truncation: str) -> Any:
    return transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16_000,
        max_length_s=1,
        frequency_max=8_000,
        truncation=truncation,
    )


def save_whisper(folder: Path) -> Path:
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
    return _save(folder, transformers.WhisperForConditionalGeneration, config, extractor)
