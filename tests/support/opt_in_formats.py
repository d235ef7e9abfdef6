"""What every format of images must do with files that are cut or mutated, and with orientations."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedstream_core.boundary import attempt
from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.media.image.decode import open_image, render
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.records import Failure
from embedstream_core.settings import DecodeSettings
from pictures import mutated

__all__ = ["assert_cuts_are_corrupt", "assert_mutations_are_refused", "turned"]

_SMALL = ImagePreprocessing(16, 16, "bilinear", (0, 0, 0), (1, 1, 1))


def _decode(content: bytes, settings: DecodeSettings) -> list[Pixels]:
    return render(open_image(content, settings), _SMALL)


def assert_cuts_are_corrupt(content: bytes, settings: DecodeSettings) -> None:
    """Every image whose file ends too early is refused."""
    _decode(content, settings)
    for length in (20, 60, len(content) // 3, len(content) * 3 // 4, len(content) - 9):
        with pytest.raises(ItemError) as caught:
            _decode(content[:length], settings)
        assert caught.value.code in (Code.IMAGE_CORRUPT, Code.IMAGE_UNSUPPORTED), length
        assert caught.value.code == Code.IMAGE_CORRUPT or length < 100, length


def assert_mutations_are_refused(
    content: bytes, settings: DecodeSettings, source: random.Random, *, count: int
) -> None:
    """A mutated image is decoded or refused, also where its profile is used."""
    for number in range(count):
        changed = mutated(content, source)
        used = replace(settings, color="srgb") if number % 2 else settings
        outcome = attempt(partial(_decode, changed, used), Stage.DECODE)
        assert not isinstance(outcome, Failure) or outcome.code in {
            Code.IMAGE_CORRUPT,
            Code.IMAGE_EMPTY,
            Code.IMAGE_TOO_LARGE,
            Code.IMAGE_UNSUPPORTED,
        }, outcome


def turned(stored: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """The displayed picture of a stored one (EXIF 2.3, tag 0x0112)."""
    across = np.swapaxes(stored, 0, 1)
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: across,
        6: across[:, ::-1],
        7: across[::-1, ::-1],
        8: across[::-1],
    }
    return shown[orientation]
