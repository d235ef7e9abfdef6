"""Two pictures that every encoder tells apart: one that does not would fill a table in silence.

A dead layer, an export without its weights, or a device that computes wrongly gives vectors that
look well but are all the same. That is asked once, where a model is prepared and where it is
loaded, and never of a stream's own pictures: two files may show the same, or differ by so little
that their vectors round to one, and bad input must not stop a stream.
"""

from __future__ import annotations

import numpy as np

from embedstream_core.media.image.decode import Pixels
from embedstream_core.records import Vectors

__all__ = ["flaw", "probe_pictures"]

# Kernels may round one picture's numbers otherwise than its neighbour's.
_ROUNDING = 1e-6


def probe_pictures(side_px: int) -> Pixels:
    """A ramp and noise: uint8 of shape (2, side_px, side_px, 3), always the same."""
    noise = np.random.default_rng(0).integers(256, size=(side_px, side_px, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, side_px).astype(np.uint8)[:, None, None]
    return np.stack([np.broadcast_to(ramp, noise.shape), noise])


def flaw(vectors: Vectors) -> str | None:
    """What is wrong with the vectors of the probe pictures; None where they are as they should."""
    if not np.isfinite(vectors).all():
        return "numbers that are not finite"
    one, other = vectors
    if np.abs(one - other).max() <= _ROUNDING * np.abs(vectors).max():
        return "the same vector for different pictures"
    return None
