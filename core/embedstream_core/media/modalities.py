"""The modalities by name, and the preprocessing that each needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from embedstream_core.media.audio.modality import AUDIO
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.media.image.modality import IMAGE
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Modality
from embedstream_core.media.text.modality import TEXT
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.settings import ModalityName

__all__ = ["MODALITIES", "Inputs", "Preprocessing"]

Preprocessing: TypeAlias = ImagePreprocessing | TextPreprocessing | AudioPreprocessing

Inputs: TypeAlias = Mapping[ModalityName, tuple[Preprocessing, ...]]
"""The modalities that are decoded, each with the preprocessings to decode for."""

MODALITIES: Mapping[ModalityName, Modality[Any, Any]] = {
    "image": IMAGE,
    "text": TEXT,
    "audio": AUDIO,
}
