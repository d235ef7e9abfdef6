"""Whatever a batch of JPEGs meets on its device, each image has the outcome of the CPU."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedstream_core.engine.engine import Engine
from embedstream_core.errors import Code, SetupError, SystemicError
from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.fast_jpeg import find_crops
from embedstream_core.media.image.gpu_jpeg import BatchDecoder, CheckedJpeg, check_jpeg
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.pipeline.decode_threads import InProcessDecoder
from embedstream_core.pipeline.jpeg_batches import WAITING, JpegBatches, open_batch_decoder
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.records import Embedding, Failure, Item, Outcome
from embedstream_core.settings import DecodeSettings, Isolation, PipelineLimits
from engines import MeanColour, run_only, start_engine
from jpeg_decoders import CPU, Fail, FailingDecoder, RecordingDecoder
from pictures import encoded, mutated, real_pictures

PATIENCE_S = 20
PREPROCESSING = ImagePreprocessing(32, 28, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
LIMITS = PipelineLimits(fetch_threads=4, decode_threads=2)
# One of 255 levels.
TOLERANCE = 1 / 255 + 1e-6

few = settings(max_examples=max(8, settings().max_examples // 6))


@cache
def engine() -> Engine:
    return start_engine(MeanColour(), PREPROCESSING)


@cache
def photo(size: tuple[int, int] = (160, 120), mode: str = "RGB", **options: Any) -> bytes:
    image = Image.open(io.BytesIO(real_pictures()["chelsea.png"])).convert(mode)
    return encoded(image.resize(size), "JPEG", **options)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo((160, 121), exif=exif.tobytes())


def noise(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(40, 60, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", quality=60)


def check(content: bytes) -> CheckedJpeg:
    opened = open_image(content, DecodeSettings())
    crops = find_crops(opened, [PREPROCESSING], "exact")
    assert crops
    jpeg = check_jpeg(content, opened, crops)
    assert jpeg is not None
    return jpeg


def run(
    contents: Sequence[bytes],
    decoder: BatchDecoder | None = None,
    *,
    limits: PipelineLimits = LIMITS,
    decode_settings: DecodeSettings | None = None,
    isolation: Isolation | None = None,
) -> list[Outcome]:
    pipeline = Pipeline(
        [engine()],
        fetch=lambda uri: pytest.fail(f"{uri} was fetched"),
        limits=limits,
        decode_settings=decode_settings or DecodeSettings(),
        isolation=isolation,
        batch_decoder=decoder,
    )
    entries = [Item(str(number), content=content) for number, content in enumerate(contents)]
    (outcomes,) = run_only(pipeline, [entries])
    return outcomes


def check_equal(found: Sequence[Outcome], expected: Sequence[Outcome]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Failure):
            assert one == other
        else:
            assert isinstance(one, Embedding)
            assert isinstance(other, Embedding)
            assert (one.media, one.content_sha256) == (other.media, other.content_sha256)
            np.testing.assert_allclose(one.vector, other.vector, rtol=0, atol=TOLERANCE)


MIXED = {
    **{f"noise {seed}": noise(seed) for seed in range(8)},
    "photo": photo(),
    "truncated": photo()[:-400],
    "truncated, with an end": photo()[:-400] + b"\xff\xd9",
    "no end": photo()[:-2],
    "no data": photo()[: photo().index(b"\xff\xda")],
    "grey": photo(mode="L"),
    "CMYK": photo(mode="CMYK"),
    "progressive": photo(progressive=True),
    **{f"orientation {number}": oriented(number) for number in range(2, 9)},
    "4:4:4": photo(subsampling="4:4:4"),
    "banner": photo((3000, 40)),
    "huge": photo((1300, 1000)),
    "PNG": encoded(Image.new("RGB", (30, 40), (1, 2, 3))),
    "black": encoded(Image.new("RGB", (30, 40)), "JPEG"),
    "HTML": b"<html>",
    "empty": b"",
}


@pytest.mark.parametrize("order", range(3))
def test_mixed_images_have_the_outcomes_of_the_cpu(order: int) -> None:
    contents = [*MIXED.values()]
    random.Random(order).shuffle(contents)
    limits = DecodeSettings(max_pixels=1_000_000)
    decoder = RecordingDecoder()

    found = run(contents, decoder, decode_settings=limits)

    check_equal(found, run(contents, decode_settings=limits))
    # Noise, the photo, the turned ones, 4:4:4 and black.
    assert sum(decoder.sizes) == 8 + 1 + 7 + 1 + 1
    codes = {one.code for one in found if isinstance(one, Failure)}
    assert codes == {
        Code.IMAGE_CORRUPT,
        Code.IMAGE_TOO_LARGE,
        Code.IMAGE_UNSUPPORTED,
        Code.IMAGE_EMPTY,
        Code.EMBEDDING_INVALID,
    }


@few
@given(seed=st.integers(0, 2**32))
def test_mutated_images_have_the_outcomes_of_the_cpu(seed: int) -> None:
    source = random.Random(seed)
    contents = [mutated(photo((64, 48)), source) for _ in range(6)]
    contents = [one for content in contents for one in (photo(), content)]

    found = run(contents, RecordingDecoder())

    check_equal(found, run(contents))


CONTENTS = [noise(seed) for seed in range(20)]


def refuse(bad: bytes, jpegs: Sequence[CheckedJpeg]) -> Exception | None:
    is_bad = any(one.content == check(bad).content for one in jpegs)
    return RuntimeError("Failed to decode batch: 2") if is_bad else None


def run_out(fitting: int, jpegs: Sequence[CheckedJpeg]) -> Exception | None:
    return torch.OutOfMemoryError("CUDA out of memory") if len(jpegs) > fitting else None


@pytest.mark.parametrize(
    "fail",
    [
        partial(refuse, CONTENTS[7]),
        partial(run_out, 3),
        partial(run_out, 0),
        lambda _: RuntimeError("Failed to decode batch: 2"),
        lambda _: OSError("of whatever kind"),
    ],
    ids=["one is refused", "memory for three", "memory for none", "all are refused", "other error"],
)
def test_what_fails_in_a_batch_is_decoded_in_halves_or_by_the_cpu(
    fail: Fail,
) -> None:
    decoder = FailingDecoder(fail)

    found = run(CONTENTS, decoder)

    check_equal(found, run(CONTENTS))
    # Which images are in a batch is a matter of time: see below for what is refused.
    assert decoder.checks == decoder.refused


class Held(FailingDecoder):
    """Its first batch lasts until the event."""

    def __init__(self, fail: Fail = lambda _: None) -> None:
        super().__init__(fail)
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def decode(self, jpegs: Sequence[CheckedJpeg]) -> list[list[Pixels] | None]:
        self.has_begun.set()
        assert self.may_end.wait(PATIENCE_S)
        return super().decode(jpegs)


def test_what_came_while_a_batch_was_decoded_is_the_next_batch() -> None:
    decoder = Held()
    batches = JpegBatches(decoder, watch=nullcontext, measure=nullcontext)
    jpegs = [check(CONTENTS[number % 20]) for number in range(100)]

    results = [batches.submit(jpegs[0])]
    assert decoder.has_begun.wait(PATIENCE_S)
    results += [batches.submit(jpeg) for jpeg in jpegs[1:]]
    decoder.may_end.set()
    batches.close()

    assert decoder.sizes == [1, 64, 35]
    expected = RecordingDecoder().decode(jpegs)
    for one, other in zip(results, expected, strict=True):
        assert other is not None
        np.testing.assert_array_equal(one.result(0), other)


@pytest.mark.parametrize(
    ("fail", "bad", "sizes"),
    [
        (partial(refuse, CONTENTS[2]), [2], [1, 8, 4, 2, 2, 1, 1, 4]),
        (partial(run_out, 3), [], [1, 8, 4, 2, 2, 4, 2, 2]),
    ],
    ids=["one is refused", "memory for three"],
)
def test_a_batch_is_halved_and_only_what_fails_alone_is_refused(
    fail: Fail, bad: list[int], sizes: list[int]
) -> None:
    decoder = Held(fail)
    batches = JpegBatches(decoder, watch=nullcontext, measure=nullcontext)

    first = batches.submit(check(CONTENTS[9]))
    assert decoder.has_begun.wait(PATIENCE_S)
    results = [batches.submit(check(content)) for content in CONTENTS[:8]]
    decoder.may_end.set()
    batches.close()

    assert first.result(0) is not None
    assert [number for number, one in enumerate(results) if one.result(0) is None] == bad
    assert decoder.sizes == sizes
    assert decoder.checks == decoder.refused > 0


@pytest.mark.parametrize(
    "decoder",
    [
        FailingDecoder(lambda _: RuntimeError("CUDA error: unspecified launch failure\nmore")),
        FailingDecoder(
            lambda _: RuntimeError("Failed to synchronize CUDA stream: 719"),
            RuntimeError("CUDA error: unspecified launch failure\nmore"),
        ),
    ],
    ids=["named", "found by a check"],
)
def test_a_failure_of_the_gpu_is_systemic(decoder: BatchDecoder) -> None:
    with pytest.raises(
        SystemicError, match="the GPU failed: CUDA error: unspecified launch"
    ) as error:
        run(CONTENTS, decoder)

    assert "more" not in str(error.value)


def test_too_little_memory_of_this_process_is_for_the_next_attempt() -> None:
    with pytest.raises(MemoryError):
        run(CONTENTS, FailingDecoder(lambda _: MemoryError()))


@pytest.mark.parametrize("fails", [False, True])
def test_no_thread_is_left(fails: bool) -> None:
    before = set(threading.enumerate())
    error = RuntimeError("CUDA error: unspecified launch failure")
    decoder = FailingDecoder(lambda _: error if fails else None)

    if fails:
        with pytest.raises(SystemicError):
            run(CONTENTS, decoder)
    else:
        run(CONTENTS, decoder)

    assert set(threading.enumerate()) <= before


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "limits",
    [
        PipelineLimits(fetch_threads=0, decode_threads=1, rows=1),
        PipelineLimits(fetch_threads=1, decode_threads=1, pixels=1),
        PipelineLimits(fetch_threads=1, decode_threads=1, pixels=2 * 40 * 60, bytes=1),
    ],
    ids=["one row", "one image in memory", "two images in memory"],
)
def test_narrow_limits_do_not_stop_it(limits: PipelineLimits) -> None:
    contents = [one for content in CONTENTS for one in (content, photo(progressive=True))]

    check_equal(run(contents, RecordingDecoder(), limits=limits), run(contents))


def test_a_batch_holds_no_more_pixels_than_the_limit() -> None:
    limits = PipelineLimits(fetch_threads=4, decode_threads=2, pixels=3 * 40 * 60)
    decoder = RecordingDecoder()

    run(CONTENTS * 5, decoder, limits=limits)

    assert sum(decoder.sizes) == 100
    assert max(decoder.sizes) <= 3


def test_images_of_a_batch_do_not_keep_each_other_in_memory() -> None:
    decoder = InProcessDecoder(
        inputs={"image": (PREPROCESSING,)},
        settings=DecodeSettings(),
        limits=LIMITS,
        threads=2,
        watchdog=Watchdog(),
        batch_decoder=RecordingDecoder(),
    )
    assert decoder.waiting == WAITING
    for content in (CONTENTS[0], oriented(6)):
        (sample,) = decoder.decode(content, "image")
        base = sample.parts[0].base
        # A turned image is a view of Pillow's bytes.
        assert base is None or (isinstance(base, bytes) and len(base) == sample.size)
    decoder.close()


def test_a_hanging_batch_is_found_by_the_watchdog() -> None:
    decoder = Held()
    reasons: list[str] = []

    def note(reason: str) -> None:
        reasons.append(reason)
        decoder.may_end.set()

    with Watchdog(note) as watchdog:
        pipeline = Pipeline(
            [engine()],
            fetch=lambda uri: pytest.fail(uri),
            limits=PipelineLimits(decode_threads=1, decode_timeout_s=0.5),
            watchdog=watchdog,
            batch_decoder=decoder,
        )
        (_,) = run_only(pipeline, [[Item("one", content=CONTENTS[0])]])

    assert reasons == ["decoding a batch of JPEGs took over 0.5 s"]


def test_the_careful_path_decodes_on_the_cpu() -> None:
    decoder = RecordingDecoder()

    found = run(CONTENTS[:3], decoder, isolation=Isolation())

    assert decoder.sizes == []
    check_equal(found, run(CONTENTS[:3]))


def test_without_an_encoder_on_a_gpu_the_run_does_not_start() -> None:
    with pytest.raises(SetupError, match=r"decode\.device is cuda, but no encoder runs on a GPU"):
        run(CONTENTS[:1], decode_settings=DecodeSettings(device="cuda"))

    assert open_batch_decoder(DecodeSettings(), [CPU]) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_has_the_outcomes_of_the_cpu() -> None:
    contents = [*MIXED.values()] * 4
    pipeline = Pipeline(
        [start_engine(MeanColour(), PREPROCESSING, device=torch.device("cuda", 0))],
        fetch=lambda uri: pytest.fail(f"{uri} was fetched"),
        decode_settings=DecodeSettings(device="cuda"),
    )

    (found,) = run_only(pipeline, [[Item("one", content=content) for content in contents]])

    for one, other in zip(found, run(contents), strict=True):
        if isinstance(other, Failure):
            assert one == other
        else:
            assert isinstance(one, Embedding)
            assert isinstance(other, Embedding)
            # Means over the pixels, which differ by a level or so.
            np.testing.assert_allclose(one.vector, other.vector, rtol=0, atol=4 / 255)
