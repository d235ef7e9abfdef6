"""The base of modules that run as they are."""

from __future__ import annotations

from torch import nn

__all__ = ["FixedModule"]


class FixedModule(nn.Module):
    """A module that runs as it is, in float32: its layers cannot be rounded, fused or compiled.

    It takes float32 on any device: normalized images of shape (n, 3, crop_px, crop_px), or samples
    of shape (n, samples) with their lengths.
    """
