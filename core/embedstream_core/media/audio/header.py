"""What is known of a clip before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from embedstream_core.settings import AudioFormat

__all__ = ["MEDIA_TYPES", "AudioHeader"]

MEDIA_TYPES: dict[AudioFormat, str] = {
    "WAV": "audio/wav",
    "FLAC": "audio/flac",
    "OGG": "audio/ogg",
    "MP3": "audio/mpeg",
}


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """A clip of which only the headers were read.

    `frames` has one sample for each channel; None where the file does not state their number.
    `stream` is what the decoder reads: the encoded sound without tags, behind a header that was
    written here and states what the file really holds.
    """

    format: AudioFormat
    rate_hz: int
    channels: int
    frames: int | None
    stream: bytes = field(repr=False)

    @property
    def media_type(self) -> str:
        """The MIME type."""
        return MEDIA_TYPES[self.format]

    @property
    def duration_s(self) -> float | None:
        """The length that the file states, in seconds; None if it states none."""
        return None if self.frames is None else self.frames / self.rate_hz

    @property
    def elements(self) -> int:
        """The samples of the clip in mono; a byte is taken for one if their number is unknown."""
        return len(self.stream) if self.frames is None else self.frames
