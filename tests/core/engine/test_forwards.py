"""The contract of a forward pass that is started and finished apart, on each kind of device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from embedstream_core.engine.backends import Forward
from embedstream_core.engine.transfer import Finish
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.settings import GpuSettings
from engines import start_engine
from late_forward import LateForward

Pixels = npt.NDArray[np.uint8]

SIDE = 64
ROWS = 16
PREPROCESSING = ImagePreprocessing(SIDE, SIDE, "bilinear", (0, 0, 0), (1, 1, 1))


class Mean(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def open_forward(device: str, gpu: GpuSettings | None = None) -> Forward:
    engine = start_engine(
        Mean(),
        PREPROCESSING,
        device=torch.device(device),
        gpu=gpu or GpuSettings(),
        batch_size=ROWS,
    )
    return engine.forwards["image"]


def on_gpu(name: str, gpu: GpuSettings | None = None) -> object:
    marks = [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    ]
    return pytest.param(lambda: open_forward("cuda", gpu), marks=marks, id=name)


@pytest.fixture(
    params=[
        pytest.param(lambda: open_forward("cpu"), id="cpu"),
        pytest.param(lambda: LateForward(open_forward("cpu")), id="late"),
        on_gpu("gpu"),
        on_gpu("gpu, pinned", GpuSettings(pinned_memory=True)),
        on_gpu("gpu, two in flight", GpuSettings(in_flight=2)),
        on_gpu("gpu, graphs", GpuSettings(cuda_graphs=True)),
        on_gpu("gpu, all", GpuSettings(pinned_memory=True, in_flight=2, cuda_graphs=True)),
    ]
)
def forward(request: pytest.FixtureRequest) -> Forward:
    build: Callable[[], Forward] = request.param
    return build()


def draw(seed: int, rows: int = ROWS) -> Pixels:
    shape = (rows, SIDE, SIDE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def start(forward: Forward, pixels: Pixels) -> Finish:
    """Start a pass, and let go of its memory, which the next one may get."""
    staged = forward.allocate(pixels.shape, pixels.dtype)
    np.copyto(staged, pixels)
    finish = forward.start((staged,))
    del staged
    gc.collect()
    return finish


def check(vectors: npt.NDArray[np.float32], pixels: Pixels) -> None:
    assert vectors.dtype == np.float32
    expected = pixels.mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


class TestForward:
    @pytest.mark.parametrize("order", [*permutations(range(3))], ids=str)
    def test_passes_in_flight_do_not_touch_each_other(
        self, forward: Forward, order: tuple[int, ...]
    ) -> None:
        batches = [draw(seed) for seed in range(3)]
        started = [start(forward, pixels) for pixels in batches]

        vectors = {index: started[index]() for index in order}

        for index, pixels in enumerate(batches):
            check(vectors[index], pixels)

    def test_memory_is_reused_only_when_its_pass_is_finished(self, forward: Forward) -> None:
        before: tuple[Finish, Pixels] | None = None
        for seed in range(20):
            pixels = draw(seed)
            finish = start(forward, pixels)
            if before:
                check(before[0](), before[1])
            before = finish, pixels

    def test_vectors_stay_when_later_passes_are_finished(self, forward: Forward) -> None:
        first = draw(0)
        vectors = start(forward, first)()

        for seed in range(1, 5):
            start(forward, draw(seed))()

        check(vectors, first)

    def test_a_pass_may_be_dropped(self, forward: Forward) -> None:
        for seed in range(5):
            start(forward, draw(seed))

        check(start(forward, draw(9))(), draw(9))

    @pytest.mark.parametrize("rows", [1, ROWS // 2, ROWS // 2 + 1, ROWS - 1, ROWS])
    def test_a_pass_has_any_number_of_rows(self, forward: Forward, rows: int) -> None:
        # What a padded batch computes beside its rows is left over from the pass before.
        start(forward, draw(0))()

        check(start(forward, draw(1, rows))(), draw(1, rows))
