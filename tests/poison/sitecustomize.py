"""Makes an image decoder that some bytes end, hang or exhaust, in every process with this folder on
its PYTHONPATH: what a defect in a native decoder does, without waiting for one to be found."""

import ctypes
import os
import signal
import time
from typing import Any

from PIL import ImageFile

_load = ImageFile.ImageFile.load


def _poisoned(self: ImageFile.ImageFile) -> Any:
    match self.info.get("comment", b""):
        case b"crash":
            ctypes.string_at(0)
        case b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"hang":
            time.sleep(600)
        case b"eat":
            eaten = [bytearray(64 * 2**20) for _ in range(32)]
            raise MemoryError(f"after {len(eaten)} times 64 MiB")
    return _load(self)


ImageFile.ImageFile.load = _poisoned  # type: ignore[method-assign]
