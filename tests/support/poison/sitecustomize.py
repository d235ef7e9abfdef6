"""Makes decoders that some bytes end, hang or exhaust, in every process with this folder on its
PYTHONPATH: what a defect in a native decoder does, without waiting for one to be found.

The comment of an image says what is to happen, and so does what follows `poison: ` at the beginning
of a text, or of the samples of a clip.
"""

import ctypes
import io
import os
import re
import signal
import struct
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import simplejpeg
import soundfile
import tokenizers
from PIL import Image, ImageFile

_load = ImageFile.ImageFile.load
_decode_jpeg = simplejpeg.decode_jpeg
_encode = tokenizers.Tokenizer.encode_batch_fast
_open_sound = soundfile.SoundFile.__init__

_MARK = re.compile(rb"poison: (\w+)")
_MARK_BYTES = 256


def _poison(comment: object) -> None:
    match comment:
        case b"crash":
            ctypes.string_at(0)
        case b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"hang":
            time.sleep(600)
        case b"eat":
            eaten = [bytearray(64 * 2**20) for _ in range(32)]
            raise MemoryError(f"after {len(eaten)} times 64 MiB")
        case b"stall":
            # The beginning of an answer of 1,000 bytes.
            os.write(0, struct.pack("!i", 1000))
            time.sleep(600)
        case bytes(comment) if comment.startswith(b"say "):
            Connection(os.dup(0)).send_bytes(comment.removeprefix(b"say "))
        case bytes(comment) if comment.startswith(b"note "):
            # Who decodes it.
            with Path(os.fsdecode(comment.removeprefix(b"note "))).open("a") as notes:
                notes.write(f"{os.getpid()}\n")


def _poison_marked(content: bytes) -> None:
    if found := _MARK.search(content[:_MARK_BYTES]):
        _poison(found[1])


def _poisoned_load(self: ImageFile.ImageFile) -> Any:
    # Pillow calls it again for an image that is loaded.
    if self.tile:
        _poison(self.info.get("comment"))
    return _load(self)


def _poisoned_decode_jpeg(content: bytes) -> Any:
    _poison(Image.open(io.BytesIO(content)).info.get("comment"))
    return _decode_jpeg(content)


def _poisoned_encode(
    self: tokenizers.Tokenizer, texts: Sequence[str], *arguments: Any, **options: Any
) -> Any:
    for text in texts:
        _poison_marked(text[:_MARK_BYTES].encode())
    return _encode(self, texts, *arguments, **options)


def _poisoned_open_sound(
    self: soundfile.SoundFile, file: Any, *arguments: Any, **options: Any
) -> None:
    if isinstance(file, io.BytesIO):
        _poison_marked(file.getvalue())
    _open_sound(self, file, *arguments, **options)


ImageFile.ImageFile.load = _poisoned_load  # type: ignore[method-assign]
simplejpeg.decode_jpeg = _poisoned_decode_jpeg
tokenizers.Tokenizer.encode_batch_fast = _poisoned_encode  # type: ignore[method-assign, assignment]
soundfile.SoundFile.__init__ = _poisoned_open_sound
