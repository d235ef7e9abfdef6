"""Which format a clip has, and its header.

Reading a header decodes nothing and runs no native code.
"""

from __future__ import annotations

from collections.abc import Callable

from embedstream_core.media.audio.flac import open_flac
from embedstream_core.media.audio.header import AudioHeader
from embedstream_core.media.audio.mp3 import open_mp3, skip_tags
from embedstream_core.media.audio.ogg import open_ogg
from embedstream_core.media.audio.wav import open_wav
from embedstream_core.media.headers import read_by_format
from embedstream_core.settings import AudioFormat

__all__ = ["READERS", "read_header"]

READERS: dict[AudioFormat, tuple[bytes, Callable[[bytes], AudioHeader]]] = {
    "WAV": (rb"RIFF....WAVE", open_wav),
    "FLAC": (rb"fLaC", open_flac),
    "OGG": (rb"OggS", open_ogg),
    "MP3": (rb"\0{,4096}\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", open_mp3),
}
"""How a file of each format begins, as a regular expression, and what reads its header."""


def read_header(content: bytes, formats: tuple[str, ...]) -> AudioHeader:
    """Identify a clip's format by its first bytes, after ID3 tags, and read its header.

    Raises:
        ItemError: none of the formats, of a kind that is not decoded here, or broken.
    """
    if start := skip_tags(content):
        content = content[start:]
    # Not in the order of `formats`: the pattern of MP3 is the weakest, so it comes last.
    readers = {name: READERS[name] for name in READERS if name in formats}
    return read_by_format(content, readers, modality="audio")
