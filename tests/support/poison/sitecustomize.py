"""Makes an image decoder that some bytes end, hang or exhaust, in every process with this folder on
its PYTHONPATH: what a defect in a native decoder does, without waiting for one to be found."""

import ctypes
import io
import os
import signal
import struct
import time
from multiprocessing.connection import Connection
from typing import Any

import simplejpeg
from PIL import Image, ImageFile

_load = ImageFile.ImageFile.load
_decode_jpeg = simplejpeg.decode_jpeg


def _poison(image: Image.Image) -> None:
    match image.info.get("comment", b""):
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


def _poisoned_load(self: ImageFile.ImageFile) -> Any:
    _poison(self)
    return _load(self)


def _poisoned_decode_jpeg(content: bytes) -> Any:
    _poison(Image.open(io.BytesIO(content)))
    return _decode_jpeg(content)


ImageFile.ImageFile.load = _poisoned_load  # type: ignore[method-assign]
simplejpeg.decode_jpeg = _poisoned_decode_jpeg
