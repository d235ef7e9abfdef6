"""An image that crashes, hangs or exhausts its decoder affects no other image."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from embedstream_core.errors import Code, ItemError, Stage
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import Inputs
from embedstream_core.media.sandbox import SandboxedDecoder
from embedstream_core.settings import DecodeSettings, Isolation
from pictures import real_pictures
from rendered import render_one

PREPROCESSING = ImagePreprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
POISON = Path(__file__).parents[2] / "support" / "poison"


def poisoned(comment: str) -> bytes:
    """Return a sound JPEG whose comment controls what happens to the process that decodes it."""
    file = io.BytesIO()
    Image.new("RGB", (300, 300), "red").save(file, "JPEG", comment=comment.encode())
    return file.getvalue()


@pytest.fixture
def open_decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SandboxedDecoder]]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(POISON), os.getenv("PYTHONPATH", "")]))
    opened: list[SandboxedDecoder] = []

    def make(timeout_s: float = 20.0, memory_bytes: int = 2**30) -> SandboxedDecoder:
        isolation = Isolation(timeout_s, memory_bytes)
        inputs: Inputs = {"image": (PREPROCESSING,)}
        decoder = SandboxedDecoder(inputs, DecodeSettings(), isolation=isolation)
        opened.append(decoder)
        return decoder

    yield make
    for decoder in opened:
        decoder.close()
    # A zombie of another test has no command line any more.
    children = [
        child.info["cmdline"]
        for child in psutil.process_iter(["cmdline", "ppid"])
        if child.info["ppid"] == os.getpid()
    ]
    assert [one for one in children if one and "embedstream_core.media.sandbox" in one] == []


def test_pixels_equal_those_of_decoding_in_process(
    open_decoder: Callable[..., SandboxedDecoder],
) -> None:
    decoder = open_decoder()

    for content in list(real_pictures().values())[:8]:
        expected = render_one(content, PREPROCESSING)
        (sample,) = decoder.decode(content, "image")
        np.testing.assert_array_equal(sample.parts, [expected.pixels])
        assert (sample.media.width, sample.media.height) == (expected.width, expected.height)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", Code.IMAGE_EMPTY), (b"<html>", Code.IMAGE_UNSUPPORTED)],
)
def test_bad_bytes_have_their_own_codes(
    content: bytes, code: Code, open_decoder: Callable[..., SandboxedDecoder]
) -> None:
    with pytest.raises(ItemError) as caught:
        open_decoder().decode(content, "image")

    assert (caught.value.code, caught.value.stage) == (code, Stage.DECODE)


@pytest.mark.parametrize(
    ("comment", "code", "message"),
    [
        ("crash", Code.DECODER_CRASHED, "SIGSEGV"),
        ("kill", Code.DECODER_CRASHED, "SIGKILL"),
        ("hang", Code.DECODER_TIMEOUT, "longer than 3 s"),
        ("eat", Code.DECODER_OUT_OF_MEMORY, "more than 300000000 bytes"),
    ],
)
def test_poison_gets_its_own_code_and_the_next_image_is_decoded(
    comment: str, code: Code, message: str, open_decoder: Callable[..., SandboxedDecoder]
) -> None:
    # A loaded machine takes seconds to end a process; only `hang` is to reach the limit.
    timeout_s = 3 if comment == "hang" else 60
    decoder = open_decoder(timeout_s=timeout_s, memory_bytes=300_000_000)
    start = time.monotonic()

    with pytest.raises(ItemError, match=message) as caught:
        decoder.decode(poisoned(comment), "image")

    assert (caught.value.code, caught.value.stage) == (code, Stage.DECODE)
    assert time.monotonic() - start < timeout_s + 7
    (sample,) = decoder.decode(poisoned("good"), "image")
    assert sample.media.width == 300


def test_threads_take_turns(open_decoder: Callable[..., SandboxedDecoder]) -> None:
    decoder = open_decoder()
    contents = list(real_pictures().values())[:12]

    with ThreadPoolExecutor(6) as pool:
        decoded = list(pool.map(partial(decoder.decode, modality="image"), contents))

    for content, (sample,) in zip(contents, decoded, strict=True):
        np.testing.assert_array_equal(sample.parts, [render_one(content, PREPROCESSING).pixels])
