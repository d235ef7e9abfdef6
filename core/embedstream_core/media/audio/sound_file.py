"""Decode a stream by libsndfile, in blocks; imports soundfile.

libsndfile reads from memory only. A Python callback gives it the bytes, with the interpreter's lock;
without it the decoder runs. An exception in a callback would be printed and ignored, so none is
raised there.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from embedstream_core.media.audio.header import AudioHeader

__all__ = ["SoundStream"]

_BLOCK_FRAMES = 2**16


class _Memory(io.BytesIO):
    """Stays where it is when it should seek to a place that cannot exist."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class SoundStream(soundfile.SoundFile):  # type: ignore[misc]
    """The sound of a clip, from its first frame to its last.

    Raises:
        ValueError: it is not what its header says.
        soundfile.LibsndfileError: it is broken.
    """

    def __init__(self, header: AudioHeader) -> None:
        super().__init__(_Memory(header.stream))
        if (self.format, self.channels) != (header.format, header.channels):
            raise ValueError(f"it holds {self.channels} channels of {self.format}")
        # libsndfile does not get the length of a FLAC.
        self.stated: int | None = header.frames if header.format == "FLAC" else self.frames

    def seekable(self) -> bool:
        """Return False: soundfile would seek to its own place after each block."""
        return False

    def read_blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield float32 of shape (frames, channels), none empty.

        Raises:
            ValueError: there are fewer frames than stated, or more.
            soundfile.LibsndfileError: it is broken.
        """
        read, stated = 0, self.stated
        while stated is None or read < stated:
            wanted = _BLOCK_FRAMES if stated is None else min(_BLOCK_FRAMES, stated - read)
            block: Any = self.read(wanted, dtype="float32", always_2d=True)
            if not len(block):
                break
            read += len(block)
            yield block
        if stated is not None and read < stated:
            raise ValueError(f"it has {read} of {stated} frames")
