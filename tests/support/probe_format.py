"""An image format whose decoder records when it runs."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

import pytest
from PIL import Image

from embedstream_core.media.image.opened_image import OpenedImage
from embedstream_core.media.image.readers import READERS
from embedstream_core.records import Item
from embedstream_core.settings import DecodeSettings

__all__ = ["PATIENCE_S", "PROBE_SETTINGS", "Decoding", "probe", "use_probes"]

PATIENCE_S = 10


class Decoding:
    """Records which decodes run at once, by pixels; each waits until `parties` have begun."""

    def __init__(self, parties: int = 1) -> None:
        self.seen: list[list[int]] = []
        self._running: list[int] = []
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(parties, timeout=PATIENCE_S)

    def run(self, pixels: int) -> None:
        with self._lock:
            self._running.append(pixels)
            self.seen.append(sorted(self._running))
        self._barrier.wait()
        # Whatever else is admitted comes while this one still runs.
        time.sleep(0.03)
        with self._lock:
            self._running.remove(pixels)


PROBE = struct.Struct(">5sHH")
PROBE_SETTINGS = DecodeSettings(formats=("PROBE",))


def probe(width: int, height: int) -> Item:
    header = PROBE.pack(b"PROBE", width, height)
    return Item(f"{width}x{height}", content=header + b"\x40" * (width * height * 3))


@pytest.fixture
def use_probes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Decoding], None]:
    """Register an image format whose decoder records when it runs."""

    def use(decoding: Decoding) -> None:
        def open_probe(content: bytes) -> OpenedImage:
            _, *size = PROBE.unpack_from(content)
            width, height = size

            def decode() -> Image.Image:
                decoding.run(width * height)
                return Image.frombytes("RGB", (width, height), content[PROBE.size :])

            return OpenedImage("PROBE", (width, height), decode)

        monkeypatch.setitem(READERS, "PROBE", (rb"PROBE", open_probe))

    return use
