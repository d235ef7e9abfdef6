"""The engine with tiny networks whose vectors are known."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from embedstream_core.engine.engine import Engine, choose_batch_size, find_device
from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.model_id import Precision
from engines import embed_pixels, start_engine

Pixels = npt.NDArray[np.uint8]

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
SIDE = 8
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def preprocessing(
    mean: tuple[float, float, float] = (0, 0, 0),
    std: tuple[float, float, float] = (1, 1, 1),
    *,
    side: int = SIDE,
) -> ImagePreprocessing:
    return ImagePreprocessing(side, side, "bilinear", mean, std)


OUT_OF_MEMORY = torch.OutOfMemoryError("too many images")


class MeanColour(nn.Module):
    """Records the size of each model batch, and runs out of memory above `fits` images."""

    def __init__(self, fits: int = 1_000, error: Exception = OUT_OF_MEMORY) -> None:
        super().__init__()
        self.fits = fits
        self.error = error
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.fits:
            raise self.error
        return images.mean((2, 3))


def start(
    model: nn.Module, *, batch_size: int | None = None, precision: Precision = "float32"
) -> Engine:
    return start_engine(model, preprocessing(), precision=precision, batch_size=batch_size)


def noise(count: int) -> list[Pixels]:
    shape = (count, SIDE, SIDE, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def mean_colours(pictures: list[Pixels]) -> npt.NDArray[np.float64]:
    means: npt.NDArray[np.float64] = np.stack(pictures).mean(axis=(1, 2)) / 255
    return means


# Vectors.


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_vectors_are_float32_rows_in_order(count: int, precision: Precision) -> None:
    pictures = noise(count)

    vectors = embed_pixels(start(MeanColour(), batch_size=2, precision=precision), pictures)

    assert vectors.dtype == np.float32
    assert vectors.shape == (count, 3)
    tolerance = 1e-6 if precision == "float32" else 1e-2
    np.testing.assert_allclose(vectors, mean_colours(pictures), rtol=0, atol=tolerance)


def all_values() -> Pixels:
    """Each of the 256 values in each channel, in different orders."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return np.stack([values, values[::-1], values.T], axis=-1)


def normalized(picture: Pixels) -> npt.NDArray[np.float64]:
    images: npt.NDArray[np.float64] = (picture / 255 - np.array(MEAN)) / np.array(STD)
    return images.transpose(2, 0, 1).ravel()


def test_the_network_sees_normalized_channels() -> None:
    engine = start_engine(
        nn.Flatten(), preprocessing(MEAN, STD, side=16), precision="float32", batch_size=1
    )

    (vector,) = embed_pixels(engine, [all_values()])

    np.testing.assert_allclose(vector, normalized(all_values()), rtol=0, atol=1e-6)


def test_bfloat16_rounds_only_after_normalizing() -> None:
    engine = start_engine(
        nn.Flatten(), preprocessing(MEAN, STD, side=16), precision="bfloat16", batch_size=1
    )

    (vector,) = embed_pixels(engine, [all_values()])

    rounded = torch.from_numpy(vector).bfloat16().float().numpy()
    np.testing.assert_array_equal(vector, rounded)
    # bfloat16 keeps 8 significant bits: one rounding is off by 2**-8 at most.
    np.testing.assert_allclose(vector, normalized(all_values()), rtol=2**-8, atol=1e-6)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_vectors_do_not_depend_on_the_model_batch(batch_size: int) -> None:
    pictures = noise(7)
    together = embed_pixels(start(network(), batch_size=16), pictures)

    in_parts = embed_pixels(start(network(), batch_size=batch_size), pictures)
    backwards = embed_pixels(start(network(), batch_size=batch_size), pictures[::-1])[::-1]

    assert np.ptp(together, axis=0).max() > 1e-3, "the images differ"
    np.testing.assert_allclose(in_parts, together, rtol=0, atol=1e-6)
    np.testing.assert_allclose(backwards, together, rtol=0, atol=1e-6)


# Batches.


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (11, [4, 4, 3])]
)
def test_a_longer_input_is_split_into_model_batches(count: int, expected: list[int]) -> None:
    model = MeanColour()

    embed_pixels(start(model, batch_size=4), noise(count))

    assert model.sizes == expected


def test_the_default_batch_size_depends_on_the_device() -> None:
    model = MeanColour()
    size = choose_batch_size(CPU)

    embed_pixels(start(model), noise(size + 1))

    assert model.sizes == [size, 1]
    assert choose_batch_size(CUDA) > size


# Memory.


@pytest.mark.parametrize("fits", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 7, 8, 13])
def test_a_model_batch_that_does_not_fit_is_halved(count: int, fits: int) -> None:
    pictures = noise(count)
    model = MeanColour(fits)

    vectors = embed_pixels(start(model, batch_size=8), pictures)

    np.testing.assert_allclose(vectors, mean_colours(pictures), rtol=0, atol=1e-6)
    assert sum(size for size in model.sizes if size <= fits) == count
    assert model.sizes[0] == min(count, 8)


def test_halving_stops_when_the_model_batch_fits() -> None:
    model = MeanColour(fits=4)

    embed_pixels(start(model, batch_size=8), noise(8))

    assert model.sizes == [8, 4, 4]


def test_a_single_image_that_does_not_fit_raises() -> None:
    model = MeanColour(fits=0)
    engine = start(model, batch_size=4)

    with pytest.raises(torch.OutOfMemoryError, match="too many images"):
        embed_pixels(engine, noise(4))

    assert model.sizes == [4, 2, 1]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_other_libraries_messages_for_out_of_memory_are_recognized(message: str) -> None:
    pictures = noise(8)
    model = MeanColour(fits=2, error=RuntimeError(message))

    vectors = embed_pixels(start(model, batch_size=8), pictures)

    np.testing.assert_allclose(vectors, mean_colours(pictures), rtol=0, atol=1e-6)
    assert model.sizes == [8, 4, 2, 2, 4, 2, 2]


def test_other_errors_are_not_retried() -> None:
    model = MeanColour(fits=0, error=RuntimeError("a bug in the network"))
    engine = start(model, batch_size=4)

    with pytest.raises(RuntimeError, match="a bug in the network"):
        embed_pixels(engine, noise(4))

    assert model.sizes == [4]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_a_gpu_failure_is_a_systemic_error(message: str) -> None:
    model = MeanColour(fits=0, error=RuntimeError(f"{message}\nCompile with TORCH_USE_CUDA_DSA"))
    engine = start(model, batch_size=4)

    with pytest.raises(SystemicError, match=f"the GPU failed: {re.escape(message)}$"):
        embed_pixels(engine, noise(4))

    assert model.sizes == [4]


# Device, precision and threads.


def test_device_cpu_is_the_cpu() -> None:
    assert find_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_auto_is_the_cpu_without_a_gpu() -> None:
    assert find_device("auto", cuda_index=1) == CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_device_auto_is_the_gpu_if_there_is_one() -> None:
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)


def test_a_missing_gpu_is_a_setup_error_with_the_way_out() -> None:
    there = torch.cuda.device_count()

    with pytest.raises(SetupError) as caught:
        find_device("cuda", cuda_index=there)

    message = str(caught.value)
    assert f"GPU {there} of {there} is not visible" in message
    assert "spark.executor.resource.gpu.amount" in message
    assert "set encoder.device to auto or cpu" in message


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("cpu_threads", "expected"), [(1, 1), (2, 2), (None, 4)])
def test_cpu_threads_bound_the_process(cpu_threads: int | None, expected: int) -> None:
    start_engine(MeanColour(), preprocessing(), cpu_threads=cpu_threads)

    assert torch.get_num_threads() == expected
