"""Small models for a topic of every modality: two of images, one of texts, one of audio."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from core_outcomes import Core, start_engines
from embedstream_core.models.prepare import ModelSpec, prepare_model
from mixed_messages import allow_references
from small_text_models import save_bert

__all__ = ["list_encoders", "start_core"]


def list_encoders(folder: Path) -> list[tuple[str, str]]:
    """Return the name and the weights of each; the text model is written into the folder."""
    text = folder / "text-model"
    if not text.exists():
        save_bert(text)
    return [
        ("seeded_encoders:first", "own"),
        ("huggingface", str(text)),
        ("seeded_encoders:second", "own"),
        ("speech-embedding", "default"),
    ]


@cache
def start_core(folder: Path) -> Core:
    """Start all of them in this process; references may name what is in the folder."""
    models = [prepare_model(ModelSpec(*one)) for one in list_encoders(folder)]
    return Core(start_engines(models), allow_references(folder))
