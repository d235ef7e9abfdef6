"""A device that is as late as a GPU may be: it computes a pass only when that is finished."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from embedstream_core.engine.backends import Forward
from embedstream_core.engine.engine import Engine
from embedstream_core.engine.transfer import Finish
from embedstream_core.media.modality import Array, Arrays
from embedstream_core.records import Vectors
from embedstream_core.settings import ModalityName

__all__ = ["LateForward", "delay"]

_GARBAGE = 0xA5


class LateForward:
    """Reads the arrays of a pass when it is finished, and then reuses their memory.

    `unfinished` counts the passes that were started and not finished; `most` is its highest value.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._free: dict[tuple[tuple[int, ...], str], list[Array]] = defaultdict(list)
        self.unfinished = self.most = 0

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        free = self._free[shape, np.dtype(dtype).name]
        return free.pop() if free else _spoil(np.empty(shape, dtype))

    def start(self, arrays: Arrays) -> Finish:
        self.unfinished += 1
        self.most = max(self.most, self.unfinished)

        def finish() -> Vectors:
            self.unfinished -= 1
            try:
                return self._forward.start(arrays)()
            finally:
                for array in arrays:
                    self._free[array.shape, array.dtype.name].append(_spoil(array))

        return finish


def _spoil(array: Array) -> Array:
    array.view(np.uint8)[...] = _GARBAGE
    return array


def delay(engine: Engine, in_flight: int) -> tuple[Engine, Mapping[ModalityName, LateForward]]:
    """Return the engine on such a device, with up to so many passes in flight, and its forwards."""
    late = {modality: LateForward(forward) for modality, forward in engine.forwards.items()}
    return replace(engine, forwards=late, in_flight=in_flight), late
