"""The engine with several forward passes in flight, on a device that computes late."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from embedstream_core.engine.engine import Engine
from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.records import Media
from embedstream_core.settings import GpuSettings
from engines import start_engine
from late_forward import delay

SIDE = 8
PREPROCESSING = ImagePreprocessing(SIDE, SIDE, "bilinear", (0, 0, 0), (1, 1, 1))
OUT_OF_MEMORY = torch.OutOfMemoryError("too many images")


class Failing(nn.Module):
    """Means of colours; raises above `fits` images from the pass `first` on."""

    def __init__(self, fits: int = 1_000, error: Exception = OUT_OF_MEMORY, first: int = 0) -> None:
        super().__init__()
        self.fits, self.error, self.first = fits, error, first
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.fits and len(self.sizes) > self.first:
            raise self.error
        return images.mean((2, 3))


def start(network: nn.Module, batch_size: int = 4) -> Engine:
    return start_engine(network, PREPROCESSING, batch_size=batch_size)


def noise(count: int, seed: int = 0) -> list[Sample]:
    shape = (count, SIDE, SIDE, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return [Sample((one,), Media("image/png")) for one in pixels]


def mean_colours(samples: list[Sample]) -> npt.NDArray[np.float64]:
    means: npt.NDArray[np.float64] = np.stack([one.parts[0] for one in samples]).mean((1, 2)) / 255
    return means


@pytest.mark.parametrize("in_flight", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 4, 9, 23])
def test_vectors_are_those_of_one_pass_at_a_time(in_flight: int, count: int) -> None:
    samples = noise(count)
    expected = start(Failing()).embed(samples, "image")
    engine, late = delay(start(Failing()), in_flight)

    vectors = engine.embed(samples, "image")

    np.testing.assert_array_equal(vectors, expected)
    assert late["image"].most == min(in_flight, -(-count // 4))
    assert late["image"].unfinished == 0


def test_samples_are_submitted_before_others_are_finished() -> None:
    engine, late = delay(start(Failing()), 2)
    batches = [noise(4, seed) for seed in range(3)]

    submitted = [engine.submit(samples, "image") for samples in batches]
    assert late["image"].unfinished == 3
    for samples, finish in zip(batches, submitted, strict=True):
        np.testing.assert_allclose(finish(), mean_colours(samples), rtol=0, atol=1e-6)


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_memory_that_runs_out_late_halves_that_pass_alone(fits: int) -> None:
    network = Failing(fits, first=1)
    engine, _ = delay(start(network), 2)
    first, second = noise(4, 1), noise(4, 2)

    finishes = [engine.submit(samples, "image") for samples in (first, second)]
    vectors = [finish() for finish in finishes]

    np.testing.assert_allclose(vectors[0], mean_colours(first), rtol=0, atol=1e-6)
    np.testing.assert_allclose(vectors[1], mean_colours(second), rtol=0, atol=1e-6)
    assert network.sizes[:4] == [4, 4, 2, 1 if fits == 1 else 2]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), SystemicError),
        (RuntimeError("a bug in the network"), RuntimeError),
        (OUT_OF_MEMORY, torch.OutOfMemoryError),
    ],
    ids=["the GPU", "the network", "memory"],
)
def test_an_error_that_comes_late_is_raised_where_the_pass_is_finished(
    error: Exception, kind: type[Exception]
) -> None:
    engine, _ = delay(start(Failing(0, error, first=1)), 2)
    first, second = (engine.submit(noise(4, seed), "image") for seed in (1, 2))

    np.testing.assert_allclose(first(), mean_colours(noise(4, 1)), rtol=0, atol=1e-6)
    with pytest.raises(kind):
        second()


def test_no_time_limit_runs_between_start_and_finish() -> None:
    opened: list[str] = []

    @contextmanager
    def watch() -> Iterator[None]:
        opened.append("open")
        yield
        opened[-1] = "closed"

    engine, _ = delay(start(Failing()), 2)

    finish = engine.submit(noise(4), "image", watch=watch)
    assert opened == ["closed"]
    finish()
    assert opened == ["closed", "closed"]


def test_a_cpu_ignores_the_switches_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    gpu = GpuSettings(pinned_memory=True, in_flight=2, cuda_graphs=True)

    with caplog.at_level(logging.WARNING):
        engine = start_engine(Failing(), PREPROCESSING, gpu=gpu)

    assert caplog.messages == ["encoder.gpu is ignored: the model runs on a CPU"]
    assert engine.in_flight == 1
    np.testing.assert_allclose(
        engine.embed(noise(3), "image"), mean_colours(noise(3)), rtol=0, atol=1e-6
    )


def test_without_switches_a_cpu_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    start(Failing())

    assert caplog.messages == []


@pytest.mark.parametrize("in_flight", [0, -1])
def test_at_least_one_pass_is_in_flight(in_flight: int) -> None:
    with pytest.raises(SetupError, match=f"in_flight is {in_flight}; it is at least 1"):
        GpuSettings(in_flight=in_flight)
