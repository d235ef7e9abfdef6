"""Audio models that `save_pretrained` wrote into a folder with their feature extractor.

| model | window | vector |
| --- | --- | --- |
| wav2vec2, HuBERT, WavLM | 10 s | the mean of the last hidden states |
| AST | `max_length` frames: 10.255 s for 1024 | `pooler_output`, the mean of its first two tokens |
| CLAP | `max_length_s`, usually 10 s | `audio_embeds`, projected and of length 1 |
| Whisper's encoder | `chunk_length`, usually 30 s | the mean over the frames that hold sound |

Windows do not overlap: each sample is heard once. AST, CLAP and Whisper have an input of fixed
length: their extractors pad shorter clips, and cut longer ones. The others take any length, but
the time of their attention grows with its square, and their authors trained on about 15 s.

The folder's own extractor runs within the module. A vector does not depend on the other clips of
its batch, nor on the padding: the first three models see clips of one length at a time, because
some of them (`feat_extract_norm: group`) normalize over all of their input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedstream_core.errors import SetupError, explain
from embedstream_core.extras import require_extra
from embedstream_core.media.audio.modality import require_decoders
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.models.folders.image_processors import PROCESSOR_FILES
from embedstream_core.models.folders.packed_folders import (
    WAY_OUT,
    WEIGHT_FILES,
    load_transformer,
    pack_files,
    read_json,
    unpack,
)

__all__ = ["AUDIO_MODEL_TYPES", "load_audio", "pack_audio", "read_audio_inputs"]

Clips = Sequence[npt.NDArray[np.float32]]

_WAVE_WINDOW_S = 10

# ASTFeatureExtractor's frames, in samples, whatever the sample rate.
_AST_FRAME, _AST_STEP, _AST_HZ = 400, 160, 16_000

# Whisper's encoder halves the frames of its extractor.
_WHISPER_STRIDE = 2


class _AudioModel(nn.Module):
    """Embeds float32 `samples` of shape (n, samples) with int64 `lengths` of shape (n,)."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__()
        self.model = model
        self.extractor = extractor

    def forward(self, samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        rows = samples.float().cpu().numpy()
        return self.embed(
            [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]
        )

    def embed(self, clips: Clips) -> torch.Tensor:
        """Return float32 vectors of shape (clips, dimension)."""
        raise NotImplementedError

    def extract(self, clips: Clips) -> Mapping[str, torch.Tensor]:
        """Return the extractor's features, floats in the model's type, on its device."""
        rate_hz = self.extractor.sampling_rate
        features = self.extractor(list(clips), sampling_rate=rate_hz, return_tensors="pt")
        weight = next(self.model.parameters())
        return {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in features.items()
        }


class _Waves(_AudioModel):
    """A model of the samples themselves."""

    def embed(self, clips: Clips) -> torch.Tensor:
        rows: dict[int, list[int]] = defaultdict(list)
        for row, clip in enumerate(clips):
            rows[len(clip)].append(row)
        vectors = []
        for same in rows.values():
            values = self.extract([clips[row] for row in same])["input_values"]
            states = self.model(values).last_hidden_state
            vectors.append(states.float().mean(1))
        order = torch.tensor([row for same in rows.values() for row in same])
        return torch.cat(vectors)[order.argsort()]


class _Ast(_AudioModel):
    def embed(self, clips: Clips) -> torch.Tensor:
        output: torch.Tensor = self.model(self.extract(clips)["input_values"]).pooler_output
        return output.float()


class _Clap(_AudioModel):
    def embed(self, clips: Clips) -> torch.Tensor:
        features = dict(self.extract(clips))
        # With `fusion`, the extractor calls one clip of a batch long, at random, and always a clip
        # that is alone.
        is_fused = self.extractor.truncation == "fusion"
        features["is_longer"] = torch.full_like(features["is_longer"], is_fused)
        if embed := getattr(self.model, "get_audio_features", None):
            projected: torch.Tensor = embed(**features).pooler_output
        else:
            projected = self.model(**features).audio_embeds
        return projected.float()


class _Whisper(_AudioModel):
    def embed(self, clips: Clips) -> torch.Tensor:
        output = self.model(self.extract(clips)["input_features"])
        states: torch.Tensor = output.last_hidden_state.float()
        step = self.extractor.hop_length * _WHISPER_STRIDE
        # A frame counts if it begins within the clip.
        frames = torch.tensor([-(-len(clip) // step) for clip in clips], device=states.device)
        mask = torch.arange(states.shape[1], device=states.device) < frames[:, None]
        vectors: torch.Tensor = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return vectors


def _read_wave_window(extractor: Any, config: Any) -> tuple[int, int]:
    if extractor.feature_size != 1:
        raise SetupError(f"feature_size {extractor.feature_size}, not 1")
    least = 1
    for kernel, stride in zip(
        reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
    ):
        least = (least - 1) * stride + kernel
    return _WAVE_WINDOW_S * extractor.sampling_rate, least


def _read_ast_window(extractor: Any, config: Any) -> tuple[int, int]:
    if extractor.sampling_rate != _AST_HZ:
        raise SetupError(f"sampling_rate {extractor.sampling_rate}, not {_AST_HZ}")
    if extractor.max_length != config.max_length:
        raise SetupError(
            f"max_length {extractor.max_length}, where the model has {config.max_length}"
        )
    return (extractor.max_length - 1) * _AST_STEP + _AST_FRAME, _AST_FRAME


def _read_clap_window(extractor: Any, config: Any) -> tuple[int, int]:
    if extractor.truncation not in ("fusion", "rand_trunc"):
        raise SetupError(f"truncation {extractor.truncation!r}")
    return int(extractor.nb_max_samples), 1


def _read_whisper_window(extractor: Any, config: Any) -> tuple[int, int]:
    if extractor.dither:
        raise SetupError(f"dither {extractor.dither}, which adds noise")
    frames = config.max_source_positions * _WHISPER_STRIDE
    if extractor.nb_max_frames != frames:
        raise SetupError(
            f"chunk_length {extractor.chunk_length}, where the model has {frames} frames"
        )
    return int(extractor.n_samples), 1


@dataclass(frozen=True, slots=True)
class _Kind:
    """A family of models.

    `read_window` returns the samples of a window, and the least that the model takes; it raises
    SetupError with the setting that is not supported.
    """

    module: Callable[[Any, Any], nn.Module]
    extractor: str
    read_window: Callable[[Any, Any], tuple[int, int]]


_WAVE_KIND = _Kind(_Waves, "Wav2Vec2FeatureExtractor", _read_wave_window)
_CLAP_KIND = _Kind(_Clap, "ClapFeatureExtractor", _read_clap_window)
_KINDS: Mapping[str, _Kind] = {
    "wav2vec2": _WAVE_KIND,
    "hubert": _WAVE_KIND,
    "wavlm": _WAVE_KIND,
    "audio-spectrogram-transformer": _Kind(_Ast, "ASTFeatureExtractor", _read_ast_window),
    "clap": _CLAP_KIND,
    "clap_audio_model": _CLAP_KIND,
    "whisper": _Kind(_Whisper, "WhisperFeatureExtractor", _read_whisper_window),
}

AUDIO_MODEL_TYPES = tuple(_KINDS)
"""The values of `model_type` in a `config.json` that are supported."""


def pack_audio(folder: Path) -> bytes:
    """Pack the folder's configuration and tensors into a zip archive, the same bytes each time.

    Raises:
        SetupError: it holds no tensors, files of another kind, or a model that is not supported.
        OSError: a file cannot be read.
    """
    _find_kind(folder)
    return pack_files(folder, ("config.json", *PROCESSOR_FILES, *WEIGHT_FILES))


def load_audio(packed: Path) -> nn.Module:
    """Load a packed folder as a network of samples of shape (n, samples) and lengths (n,).

    Raises:
        SetupError: it lacks weights, or asks for what is not supported.
        MissingExtra: transformers, or what decodes audio, is not installed.
    """
    require_decoders()
    with unpack(packed) as folder:
        kind, extractor, config = _open_folder(folder)
        import transformers

        # These weights only serve training, and many published files lack them.
        for name in ("mask_time_prob", "mask_feature_prob"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
        is_half = config.model_type == "clap_audio_model"
        name = "ClapAudioModelWithProjection" if is_half else "AutoModel"
        model: Any = load_transformer(getattr(transformers, name), folder, config)[0]
    if config.model_type == "whisper":
        model = model.encoder
    elif config.model_type == "clap":
        del model.text_model, model.text_projection
    return kind.module(model, extractor)


def read_audio_inputs(folder: Path) -> tuple[AudioPreprocessing, ...]:
    """Return the windows that the folder's model and feature extractor take.

    Raises:
        SetupError: the folder has no feature extractor, or a setting is not supported.
        MissingExtra: transformers is not installed.
    """
    kind, extractor, config = _open_folder(folder)
    window, least = kind.read_window(extractor, config)
    return (AudioPreprocessing(int(extractor.sampling_rate), window, window, least),)


def _find_kind(folder: Path) -> _Kind:
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in _KINDS:
        raise SetupError(
            f"'{folder}' holds a model of type {model_type!r}; those of audio that are supported: "
            f"{', '.join(_KINDS)}"
        )
    return _KINDS[model_type]


def _open_folder(folder: Path) -> tuple[_Kind, Any, Any]:
    """Return the kind of the model, its feature extractor and its configuration, both checked."""
    kind = _find_kind(folder)
    with require_extra("audio", feature="an encoder of audio from transformers"):
        import transformers
    try:
        config: Any = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        extractor: Any = transformers.AutoFeatureExtractor.from_pretrained(
            folder, trust_remote_code=False
        )
    except Exception as error:
        # transformers raises many types for files that it cannot read.
        raise SetupError(
            f"the feature extractor of '{folder}' cannot be opened ({explain(error)}): save it "
            "into the model's folder with save_pretrained"
        ) from error
    try:
        if (given := type(extractor).__name__) != kind.extractor:
            raise SetupError(f"{given}, not {kind.extractor}")
        kind.read_window(extractor, config)
    except SetupError as error:
        raise SetupError(
            f"the feature extractor of '{folder}' is not supported: {error}; {WAY_OUT}"
        ) from error
    return kind, extractor, config
