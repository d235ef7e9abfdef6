"""The faults of a real GPU: memory that runs out, an error that stays, a pass that hangs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.records import Media
from embedstream_core.settings import GpuSettings
from engines import start_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

SIDE = 8
PREPROCESSING = ImagePreprocessing(SIDE, SIDE, "bilinear", (0, 0, 0), (1, 1, 1))
ALL_ON = GpuSettings(pinned_memory=True, in_flight=2)
EITHER = pytest.mark.parametrize("gpu", [GpuSettings(), ALL_ON], ids=["off", "on"])

# A process of its own: CUDA keeps the error, and nothing else ends the hang.
PROGRAM = """
import numpy as np
import torch
from torch import nn

from embedstream_core.engine.engine import Engine
from embedstream_core.errors import SystemicError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.records import Media
from embedstream_core.settings import GpuSettings


class Mean(nn.Module):
    fault = None

    def forward(self, images):
        vectors = images.mean((2, 3))
        if self.fault == "sticky":
            # An index out of range: a kernel's own check of it fails, after the launch.
            vectors = vectors[torch.full((len(images),), 2**30, device=images.device)]
        if self.fault == "hang":
            for _ in range(1_000):
                torch.cuda._sleep(2**40)
        return vectors


network = Mean()
engine = Engine.start(
    LoadedModel(network, (ImagePreprocessing(8, 8, "bilinear", (0, 0, 0), (1, 1, 1)),)),
    device=torch.device("cuda"),
    gpu=GpuSettings(in_flight={in_flight}),
)
pixels = np.zeros((8, 8, 3), np.uint8)
samples = [Sample((pixels,), Media("image/png"))] * 4
engine.embed(samples, "image")
network.fault = "{fault}"
with Watchdog() as watchdog:
    for _ in range(2):
        try:
            watch = lambda: watchdog.watch("a forward pass", timeout_s=2)
            engine.embed(samples, "image", watch=watch)
        except SystemicError as error:
            print(error, flush=True)
        network.fault = None
"""


def run_with(fault: str, in_flight: int) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("{fault}", fault).replace("{in_flight}", str(in_flight))
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )


class Hungry(nn.Module):
    """Takes more memory than the device has for more than `fits` images."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits = fits
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        _, total = torch.cuda.mem_get_info()
        torch.empty(total // self.fits * len(images) * 2 // 3, dtype=torch.uint8, device="cuda")
        return images.mean((2, 3))


@EITHER
def test_a_model_batch_that_does_not_fit_is_halved(gpu: GpuSettings) -> None:
    network = Hungry(fits=4)
    engine = start_engine(
        network, PREPROCESSING, device=torch.device("cuda"), batch_size=16, gpu=gpu
    )
    pixels = np.random.default_rng(0).integers(0, 256, (32, SIDE, SIDE, 3), dtype=np.uint8)

    vectors = engine.embed([Sample((one,), Media("image/png")) for one in pixels], "image")

    np.testing.assert_allclose(vectors, pixels.mean((1, 2)) / 255, rtol=0, atol=1e-5)
    # In the order of the forward passes, whatever was in flight.
    assert sorted(network.sizes) == [4] * 8 + [8] * 4 + [16] * 2


@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_error_that_stays_is_systemic_from_then_on(in_flight: int) -> None:
    done = run_with("sticky", in_flight)

    # How the process ends is not the point: CUDA's own clean-up may fail by then.
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    first, second = lines
    assert first.startswith("the GPU failed: CUDA error: device-side assert triggered"), first
    assert second.startswith("the GPU failed: CUDA error: "), second


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_pass_that_hangs_is_killed_with_its_process(in_flight: int) -> None:
    done = run_with("hang", in_flight)

    assert done.returncode == -9, done.stderr
    assert "a forward pass took over 2 s: this worker is killed" in done.stderr
