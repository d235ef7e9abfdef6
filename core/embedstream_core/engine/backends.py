"""What computes a forward pass: torch, torch compiled, or OpenVINO. One row of `BACKENDS` each."""

from __future__ import annotations

import ctypes
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from embedstream_core.errors import SetupError
from embedstream_core.media.image.decode import Pixels, Preprocessing
from embedstream_core.models.files.file_formats import FixedModule
from embedstream_core.records import Vectors
from embedstream_core.settings import Backend

__all__ = [
    "BACKENDS",
    "Forward",
    "Placement",
    "fold_batch_norms",
    "obstacle",
]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs. `cpu_threads` is None where the library may choose."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    cpu_threads: int | None


class Forward(Protocol):
    """One forward pass, normalization included; called from one thread at a time."""

    def __call__(self, pixels: Pixels, /) -> Vectors:
        """Embed uint8 of shape (n, crop_px, crop_px, 3); returns float32 (n, dimension)."""


# Of glibc's malloc.h; the values are in bytes.
_MALLOC = {-1: 256 * 2**20, -3: 128 * 2**20}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def _open_torch(model: nn.Module, preprocessing: Preprocessing, placement: Placement) -> Forward:
    if placement.device.type == "cpu":
        _reuse_memory()
        if placement.cpu_threads is not None:
            torch.set_num_threads(placement.cpu_threads)
    if not isinstance(model, FixedModule):
        model = _tuned(model, placement.dtype)
    return _TorchForward.of(model, preprocessing, placement)


def _tuned(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    # Folded weights span more magnitudes: rounded, EfficientNet-Lite0's keep a cosine of 0.998.
    rounds_badly = dtype == torch.bfloat16 and _is_depthwise(model)
    folded = model if rounds_badly else fold_batch_norms(model)
    return _in_dtype(folded, dtype).to(memory_format=torch.channels_last)


def _reuse_memory() -> None:
    """Let malloc keep what one forward pass frees for the next, for the whole process.

    By default glibc gives anything over 32 MiB back, as most activations are, so that each one
    comes as fresh pages that the kernel has to clear. Measured on one core in float32, 16 pictures
    a pass: ResNet-50 1.12 times as fast, EfficientNet-Lite0 2.0 times, with 200 MB more memory.
    """
    # Not every C library has it.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


def _open_compiled(model: nn.Module, preprocessing: Preprocessing, placement: Placement) -> Forward:
    forward = cast("_TorchForward", _open_torch(model, preprocessing, placement))
    compiled = _TorchForward(
        cast("nn.Module", torch.compile(forward.model, dynamic=False)),
        placement.device,
        forward.input_dtype,
        forward.scale,
        forward.shift,
    )
    # One shape, compiled once: a smaller batch is filled up.
    return lambda pixels: compiled(_filled_up(pixels, placement.batch_size))[: len(pixels)]


@dataclass(frozen=True, slots=True)
class _TorchForward:
    model: nn.Module
    device: torch.device
    input_dtype: torch.dtype
    scale: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(
        cls, model: nn.Module, preprocessing: Preprocessing, placement: Placement
    ) -> _TorchForward:
        # Tiled to a row of a picture: three values at a time are slow to go through.
        mean, std = (
            torch.tensor(values).repeat(preprocessing.crop_px)
            for values in (preprocessing.mean, preprocessing.std)
        )
        exact = any(isinstance(module, _Rounded | FixedModule) for module in model.modules())
        return cls(
            model=model.to(placement.device),
            device=placement.device,
            input_dtype=torch.float32 if exact else placement.dtype,
            scale=(1 / (255 * std)).to(placement.device),
            shift=(-mean / std).to(placement.device),
        )

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Vectors:
        return self.compute(self.upload(pixels)).cpu().numpy()

    def upload(self, pixels: Pixels) -> torch.Tensor:
        return torch.from_numpy(pixels).to(self.device)

    def compute(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.float().flatten(2)
        normalized = torch.addcmul(self.shift, rows, self.scale).view(images.shape)
        # Height, width, channel in memory is what torch calls channels_last: nothing is copied.
        output: torch.Tensor = self.model(normalized.permute(0, 3, 1, 2).to(self.input_dtype))
        return output.float()


def _filled_up(pixels: Pixels, size: int) -> Pixels:
    missing = [(0, size - len(pixels)), (0, 0), (0, 0), (0, 0)]
    return np.pad(pixels, missing) if len(pixels) < size else pixels


class _Rounded(nn.Module):
    """A layer that computes in bfloat16 between float32 activations."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.to(torch.bfloat16)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(activations.to(torch.bfloat16))
        return output.float()


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give a model its precision, so that embeddings keep a cosine of 0.999 to float32's.

    Rounding depthwise convolutions moves them further (EfficientNet-Lite0: to 0.988), and these
    are a few percent of the work: where there are any, only the pointwise and dense layers, which
    are the bulk of it, compute in bfloat16.
    """
    if dtype != torch.bfloat16 or not _is_depthwise(model):
        return model.to(dtype)
    layers = [(name, layer) for name, layer in model.named_modules() if _is_pointwise(layer)]
    for name, layer in layers:
        model.set_submodule(name, _Rounded(layer))
    return model


def _is_depthwise(model: nn.Module) -> bool:
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(1 < layer.groups == layer.in_channels for layer in convolutions)


def _is_pointwise(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it, in place; the output stays the same.

    Measured in float32 on one core: ResNet-50 1.13 times as fast. A network that torch.fx cannot
    trace is left as it is.
    """
    try:
        nodes = _ConvolutionTracer().trace(model).nodes
    except Exception:
        # Tracing raises whatever the network's own Python raises on symbols; none of it matters.
        return model
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        once = calls[before.target] == calls[node.target] == 1
        if once and isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            folded = fuse_conv_bn_eval(convolution, norm)
            if _is_alike(folded, nn.Sequential(convolution, norm)):
                model.set_submodule(str(before.target), folded)
                model.set_submodule(str(node.target), nn.Identity())
    return model


class _ConvolutionTracer(fx.Tracer):
    """Takes convolutions whole, also those that networks derive from torch's to pad otherwise."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


@torch.inference_mode()
def _is_alike(folded: nn.Conv2d, apart: nn.Sequential) -> bool:
    """Whether folding kept the output: not where a convolution normalizes its own weights."""
    if type(folded) is nn.Conv2d:
        return True
    weight = folded.weight
    example = torch.linspace(-1, 1, folded.in_channels * 16 * 16).view(1, -1, 16, 16)
    example = example.to(weight.device, weight.dtype)
    return torch.allclose(folded(example), apart(example), rtol=1e-3, atol=1e-4)


def obstacle(backend: Backend, device: torch.device, *, fixed: bool = False) -> str | None:
    """Why a backend cannot be used on this machine; None where it can.

    `fixed` is for programs that run as they are.
    """
    match backend:
        case "compile" | "openvino" if fixed:
            return "the encoder is a program, which runs as it is"
        case "openvino" if find_spec("openvino") is None:
            return "it is not installed: pip install 'embedstream[openvino]'"
        case "openvino" if device.type != "cpu":
            return f"it runs on CPUs, not on {device.type}"
        case "compile" if device.type == "cpu" and shutil.which("g++") is None:
            return "it needs a C++ compiler (g++)"
        case _:
            return None


def _open_openvino(model: nn.Module, preprocessing: Preprocessing, placement: Placement) -> Forward:
    import openvino

    properties: dict[str, Any] = {
        "NUM_STREAMS": 1,
        # Pinned, the workers of a machine would all run on its first cores.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": _openvino_precision(model, placement.dtype),
    }
    if placement.cpu_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = placement.cpu_threads
    graph = _openvino_graph(model, preprocessing)
    compiled = openvino.Core().compile_model(graph, "CPU", properties)
    return lambda pixels: np.asarray(compiled(pixels)[0])


def _openvino_precision(model: nn.Module, dtype: torch.dtype) -> str:
    rounds = dtype == torch.bfloat16 and not _is_depthwise(model)
    return "bf16" if rounds else "f32"


def _openvino_graph(model: nn.Module, preprocessing: Preprocessing) -> Any:
    """The network with its normalization, for any number of uint8 pictures."""
    import openvino
    from openvino.preprocess import ColorFormat, PrePostProcessor

    side = preprocessing.crop_px
    example = torch.zeros(1, 3, side, side)
    with warnings.catch_warnings():
        # It traces with torch.jit, which torch calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        # It may warn of every check of a shape, which here is always the same.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            graph = openvino.convert_model(
                model.float(), input=[-1, 3, side, side], example_input=example
            )
        except RuntimeError as error:
            raise SetupError(
                f"OpenVINO cannot convert {type(model).__name__}; set encoder.backend to torch "
                f"({str(error).splitlines()[0]})"
            ) from error
    steps = PrePostProcessor(graph)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(
        openvino.Layout("NHWC")
    ).set_color_format(ColorFormat.RGB)
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    convert = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    convert.mean([255 * mean for mean in preprocessing.mean])
    convert.scale([255 * std for std in preprocessing.std])
    return steps.build()


BACKENDS: Mapping[Backend, Callable[[nn.Module, Preprocessing, Placement], Forward]] = {
    "torch": _open_torch,
    "compile": _open_compiled,
    "openvino": _open_openvino,
}
