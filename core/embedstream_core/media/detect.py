"""Placeholder."""

from __future__ import annotations

from embedstream_core.settings import ModalityName


def detect_type(content: bytes) -> str:
    """Return a type."""
    return "application/octet-stream"


def find_modality(mime: str) -> ModalityName | None:
    """Return a modality."""
    return "image" if mime.startswith("image/") else None
