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
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedstream_core.engine.rewrite import RoundedLayer, has_depthwise_convolutions, rewrite_model
from embedstream_core.engine.static_shape import Compute, StaticShape, replay_if_possible
from embedstream_core.engine.transfer import DirectTransfer, Finish, PinnedTransfer, Transfer
from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.media.modality import Array, Arrays
from embedstream_core.models.files.fixed_module import FixedModule
from embedstream_core.settings import Backend, GpuSettings, ModalityName

__all__ = [
    "BACKENDS",
    "Forward",
    "Normalize",
    "Placement",
    "TorchForward",
    "find_graph_obstacle",
    "find_obstacle",
]

# Parameters of mallopt, from glibc's malloc.h; other C libraries have no mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True, slots=True)
class Placement:
    """The device and precision of a model. With `cpu_threads` None the library chooses.

    `gpu` has only switches that this model and this device can use.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    cpu_threads: int | None
    gpu: GpuSettings


class Forward(Protocol):
    """Forward passes of a model, the normalization of pixels included.

    Called from one thread at a time. Passes are computed in the order of their starts; several may
    be started before the first is finished.
    """

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return memory to collate the arrays of a pass into; its values are undefined."""

    def start(self, arrays: Arrays) -> Finish:
        """Start a pass over collated arrays; finishing it returns float32 (n, dimension)."""


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


def find_graph_obstacle(
    backend: Backend, *, modalities: Sequence[ModalityName], fixed: bool
) -> str | None:
    """Return why a model on a GPU runs without CUDA graphs, or None if it may have them."""
    if fixed:
        return "the encoder is a program, which runs as it is"
    if backend != "torch":
        return f"the backend is {backend}"
    return None if "image" in modalities else "they are for encoders of images alone"


@dataclass(frozen=True, slots=True)
class _Network:
    """Computes vectors on the device; `normalize` is None where arrays go in as they are."""

    normalize: nn.Module | None
    model: Callable[..., torch.Tensor]
    input_dtype: torch.dtype

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.normalize is None:
            return self.model(*inputs).float()
        return self.model(self.normalize(*inputs).to(self.input_dtype)).float()


@dataclass(frozen=True, slots=True)
class TorchForward:
    """Passes of torch, in three steps: upload, compute, download."""

    compute: Compute
    transfer: Transfer

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return memory from which the transfer copies fastest."""
        return self.transfer.allocate(shape, dtype)

    @torch.inference_mode()
    def start(self, arrays: Arrays) -> Finish:
        """Start a pass; on a CPU it is complete then."""
        return self.transfer.download(self.compute(*self.transfer.upload(arrays)))


def _open_network(model: nn.Module, preprocessing: Preprocessing, placement: Placement) -> _Network:
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
        return _Network(None, model.to(placement.device), placement.dtype)
    if not isinstance(model, FixedModule):
        model = rewrite_model(model, placement.dtype)
    is_exact = any(isinstance(module, RoundedLayer | FixedModule) for module in model.modules())
    return _Network(
        normalize=Normalize(preprocessing).to(placement.device),
        model=model.to(placement.device),
        input_dtype=torch.float32 if is_exact else placement.dtype,
    )


def _open_transfer(placement: Placement) -> Transfer:
    gpu = placement.gpu
    if gpu.pinned_memory or gpu.in_flight > 1:
        return PinnedTransfer(placement.device)
    return DirectTransfer(placement.device)


def _make_blank_pixels(preprocessing: ImagePreprocessing, placement: Placement) -> torch.Tensor:
    """Return a full model batch of black images, on the device."""
    side = preprocessing.crop_px
    shape = (placement.batch_size, side, side, 3)
    return torch.zeros(shape, dtype=torch.uint8, device=placement.device)


def _open_torch(model: nn.Module, preprocessing: Preprocessing, placement: Placement) -> Forward:
    compute: Compute = _open_network(model, preprocessing, placement)
    if placement.gpu.cuda_graphs and isinstance(preprocessing, ImagePreprocessing):
        compute = replay_if_possible(compute, _make_blank_pixels(preprocessing, placement))
    return TorchForward(compute, _open_transfer(placement))


def _open_compiled(
    model: nn.Module, preprocessing: ImagePreprocessing, placement: Placement
) -> Forward:
    network = _open_network(model, preprocessing, placement)
    compiled = replace(network, model=torch.compile(network.model, dynamic=False))
    with torch.inference_mode():
        # It is compiled by its first pass, which should not be one of the stream's.
        compiled(_make_blank_pixels(preprocessing, placement))
    return TorchForward(
        StaticShape(compiled, network, rows=placement.batch_size), _open_transfer(placement)
    )


@dataclass(frozen=True, slots=True)
class _OpenVinoForward:
    compute: Callable[[Array], Any]

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        return np.empty(shape, dtype)

    def start(self, arrays: Arrays) -> Finish:
        vectors = np.asarray(self.compute(*arrays)[0])
        return lambda: vectors


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
    return _OpenVinoForward(compiled)


# Only torch opens models of other modalities than images, see `find_obstacle`.
BACKENDS: Mapping[Backend, Callable[[nn.Module, Any, Placement], Forward]] = {
    "torch": _open_torch,
    "compile": _open_compiled,
    "openvino": _open_openvino,
}
