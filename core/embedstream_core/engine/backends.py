"""The backends that compute a forward pass: torch, compiled torch and OpenVINO."""

from __future__ import annotations

import ctypes
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from embedstream_core.engine.rewrite import RoundedLayer, has_depthwise_convolutions, rewrite_model
from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.media.modality import Arrays
from embedstream_core.models.files.fixed_module import FixedModule
from embedstream_core.records import Vectors
from embedstream_core.settings import Backend, ModalityName

__all__ = ["BACKENDS", "Forward", "Normalize", "Placement", "find_obstacle"]

# Parameters of mallopt, from glibc's malloc.h; other C libraries have no mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, slots=True)
class Placement:
    """The device and precision of a model. With `cpu_threads` None the library chooses."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    cpu_threads: int | None


Forward: TypeAlias = Callable[[Arrays], Vectors]
"""One forward pass over collated arrays, the normalization of pixels included: float32 of shape
(n, dimension). Called from one thread at a time."""


class Normalize(nn.Module):
    """uint8 of shape (n, side, side, 3) to normalized float32 of shape (n, 3, side, side)."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, preprocessing: ImagePreprocessing) -> None:
        super().__init__()
        # Repeated to the length of an image's row, because torch is slow on rows of three values.
        mean, std = (
            torch.tensor(values).repeat(preprocessing.crop_px)
            for values in (preprocessing.mean, preprocessing.std)
        )
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize a model batch without copying it to another memory layout."""
        rows = torch.addcmul(self.shift, pixels.float().flatten(2), self.scale)
        # torch calls the layout height, width, channel channels_last.
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


def find_obstacle(
    backend: Backend,
    device: torch.device,
    *,
    modalities: Sequence[ModalityName] = ("image",),
    fixed: bool = False,
) -> str | None:
    """Return why this machine cannot use a backend, or None if it can.

    `fixed` models run unchanged (see `FixedModule`).
    """
    match backend:
        case "compile" | "openvino" if fixed:
            return "the encoder is a program, which runs as it is"
        case "compile" | "openvino" if tuple(modalities) != ("image",):
            return "it runs encoders of images alone"
        case "openvino" if find_spec("openvino") is None:
            return "it is not installed: pip install 'embedstream[openvino]'"
        case "openvino" if device.type != "cpu":
            return f"it runs on CPUs, not on {device.type}"
        case "compile" if device.type == "cpu" and shutil.which("g++") is None:
            return "it needs a C++ compiler (g++)"
        case _:
            return None


@dataclass(frozen=True, slots=True)
class _TorchForward:
    """`normalize` is None where arrays go to the model as they are."""

    normalize: nn.Module | None
    model: Callable[..., torch.Tensor]
    device: torch.device
    input_dtype: torch.dtype

    @torch.inference_mode()
    def __call__(self, arrays: Arrays) -> Vectors:
        return self.compute(*self.upload(arrays)).cpu().numpy()

    def upload(self, arrays: Arrays) -> list[torch.Tensor]:
        return [torch.from_numpy(one).to(self.device) for one in arrays]

    def compute(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.normalize is None:
            return self.model(*inputs).float()
        return self.model(self.normalize(*inputs).to(self.input_dtype)).float()


def _open_torch(
    model: nn.Module, preprocessing: Preprocessing, placement: Placement
) -> _TorchForward:
    if placement.device.type == "cpu":
        # Let malloc keep what a forward pass frees for the next one, in the whole process. By
        # default glibc returns each block over 32 MiB, as most activations are, to the kernel,
        # which clears fresh pages for the next pass. Measured on one core in float32, 16 images a
        # pass: ResNet-50 is 1.12 times as fast, EfficientNet-Lite0 2.0 times, with 200 MB more
        # memory. MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ do the same, but only if they
        # are set before the process starts, which no notebook and no given Spark session does.
        if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
            mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)
            mallopt(_M_MMAP_THRESHOLD, 128 * 2**20)
        if placement.cpu_threads is not None:
            torch.set_num_threads(placement.cpu_threads)
    if not isinstance(preprocessing, ImagePreprocessing):
        if not isinstance(model, FixedModule):
            model = model.to(placement.dtype)
        return _TorchForward(None, model.to(placement.device), placement.device, placement.dtype)
    if not isinstance(model, FixedModule):
        model = rewrite_model(model, placement.dtype)
    is_exact = any(isinstance(module, RoundedLayer | FixedModule) for module in model.modules())
    return _TorchForward(
        normalize=Normalize(preprocessing).to(placement.device),
        model=model.to(placement.device),
        device=placement.device,
        input_dtype=torch.float32 if is_exact else placement.dtype,
    )


def _open_compiled(model: nn.Module, preprocessing: Preprocessing, placement: Placement) -> Forward:
    forward = _open_torch(model, preprocessing, placement)
    compiled = replace(forward, model=torch.compile(forward.model, dynamic=False))

    def embed(arrays: Arrays) -> Vectors:
        # The model is compiled for one shape, so a smaller model batch is padded.
        (pixels,) = arrays
        missing = placement.batch_size - len(pixels)
        padded = np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else pixels
        return compiled((padded,))[: len(pixels)]

    return embed


@contextmanager
def _keep_root_logger() -> Iterator[None]:
    """Restore the root logger, which OpenVINO leaves at the level ERROR if a conversion fails."""
    root = logging.getLogger()
    level, filters, handlers = root.level, [*root.filters], [*root.handlers]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _open_openvino(
    model: nn.Module, preprocessing: ImagePreprocessing, placement: Placement
) -> Forward:
    import openvino

    rounds = placement.dtype == torch.bfloat16 and not has_depthwise_convolutions(model)
    properties: dict[str, Any] = {
        "NUM_STREAMS": 1,
        # With pinning, all workers of a machine would run on its first cores.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if rounds else "f32",
    }
    if placement.cpu_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = placement.cpu_threads
    side = preprocessing.crop_px
    with _keep_root_logger(), warnings.catch_warnings():
        # OpenVINO traces with torch.jit, which torch deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        # The tracer may warn of each check of a shape, and the shape is always the same here.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            graph = openvino.convert_model(
                nn.Sequential(Normalize(preprocessing), model.float()),
                input=[([-1, side, side, 3], openvino.Type.u8)],
                example_input=torch.zeros(1, side, side, 3, dtype=torch.uint8),
            )
        except RuntimeError as error:
            raise SetupError(
                f"OpenVINO cannot convert {type(model).__name__}; set encoder.backend to torch "
                f"({str(error).splitlines()[0]})"
            ) from error
    compiled = openvino.Core().compile_model(graph, "CPU", properties)
    return lambda arrays: np.asarray(compiled(arrays[0])[0])


# Only torch opens models of other modalities than images, see `find_obstacle`.
BACKENDS: Mapping[Backend, Callable[[nn.Module, Any, Placement], Forward]] = {
    "torch": _open_torch,
    "compile": _open_compiled,
    "openvino": _open_openvino,
}
