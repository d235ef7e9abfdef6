"""Models that are a file, whatever made it: `encoder.name` says which kind, a row of `PROGRAMS`.

| name | the file | extra |
| --- | --- | --- |
| `export` | a program that `torch.export.save` wrote | |
| `onnx` | an ONNX model, weights included; onnxruntime runs it on the CPU | `onnx` |
| `keras` | a `.keras` file of Keras 3; Keras runs it on torch | `keras` |
| `huggingface` | a folder that `save_pretrained` wrote | `huggingface` |

No code from a file is run: none is loaded by pickle, and none is trusted with Python of its own.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedstream_core.decode import Interpolation, Preprocessing
from embedstream_core.errors import MissingExtra, SetupError
from embedstream_core.exported import open_exported

__all__ = ["PROGRAMS", "FixedModule", "Program", "is_fixed", "open_program"]


class FixedModule(nn.Module):
    """A module that runs as it is, in float32: its layers cannot be rounded, fused or compiled.

    It takes float32 of shape (n, 3, crop_px, crop_px), normalized, on any device.
    """


@dataclass(frozen=True, slots=True)
class Program:
    """A kind of file.

    `load` makes a module of the packed file; `pack` gives the bytes that travel, the same ones for
    the same model; `declared` the preprocessing that lies beside the weights. `fixed` programs
    load as a `FixedModule`.
    """

    load: Callable[[Path], nn.Module]
    pack: Callable[[Path], bytes] = Path.read_bytes
    declared: Callable[[Path], Preprocessing | None] = lambda path: None
    fixed: bool = True


def is_fixed(encoder: str) -> bool:
    """Whether the encoder of that name is a program that loads as a `FixedModule`."""
    return encoder in PROGRAMS and PROGRAMS[encoder].fixed


def open_program(name: str, path: Path) -> nn.Module:
    """Load a packed program.

    Raises:
        SetupError: the file is broken, or holds what could run code.
        MissingExtra: the package that runs it is not installed.
    """
    try:
        return PROGRAMS[name].load(path).eval()
    except MissingExtra:
        raise
    except Exception as error:
        # Each library raises types of its own on files that it cannot read.
        raise SetupError(f"the {name} file cannot be opened: {error}") from error


def _required(module: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(feature=f"encoder '{extra}'", extra=extra) from None


def _is_channels_last(shape: Any) -> bool:
    return len(shape) == 4 and shape[3] == 3 != shape[1]


class _Exported(FixedModule):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.program = open_exported(path)
        self.run: Callable[[torch.Tensor], torch.Tensor] | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.run is None:
            self.run = self._on(images.device)
        # It was traced with this order, which a view in it may rely on.
        return self.run(images.contiguous())

    def _on(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        from torch.export.passes import move_to_device_pass

        # Tensors that its code makes, such as positions, are moved too.
        module = move_to_device_pass(self.program, device).module(check_guards=False)
        # As a submodule it would be told eval(), which it refuses.
        return module.__call__


class _Onnx(FixedModule):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.runtime = _required("onnxruntime", extra="onnx")
        self.content: bytes | None = path.read_bytes()
        self.session: Any = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.content is not None:
            self.session, self.content = self._open(self.content), None
        source = self.session.get_inputs()[0]
        order = (0, 2, 3, 1) if _is_channels_last(source.shape) else (0, 1, 2, 3)
        pixels = images.permute(order).contiguous().cpu().numpy()
        (vectors,) = self.session.run(None, {source.name: pixels})
        return torch.from_numpy(vectors)

    def _open(self, content: bytes) -> Any:
        """The session: opened for the first pass, when the engine has set the threads."""
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Waiting threads would take the cores from other tasks and from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        try:
            return self.runtime.InferenceSession(content, options, providers=providers)
        except Exception as error:
            raise SetupError(f"the onnx file cannot be opened: {error}") from error


class _Keras(FixedModule):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.keras = _keras_on_torch()
        # Keras goes by the name, and in its older formats safe_mode does not hold.
        with tempfile.TemporaryDirectory() as folder, self.keras.device("cpu"):
            named = Path(folder) / "model.keras"
            named.symlink_to(path.absolute())
            self.model = self.keras.saving.load_model(named, compile=False, safe_mode=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        expected = self.model.input_shape
        pixels = images.permute((0, 2, 3, 1) if _is_channels_last(expected) else (0, 1, 2, 3))
        # Keras itself only checks the channels.
        if any(
            side not in (None, given) for side, given in zip(expected, pixels.shape, strict=True)
        ):
            raise ValueError(f"it takes {expected}, not {tuple(pixels.shape)}")
        # Keras would move its input to a GPU wherever there is one.
        with self.keras.device(str(images.device)):
            output: torch.Tensor = self.model(pixels, training=False)
        return output


def _keras_on_torch() -> Any:
    backend = os.environ.setdefault("KERAS_BACKEND", "torch")
    # Before the import: of a backend that is not installed it fails.
    keras = _required("keras", extra="keras") if backend == "torch" else None
    if keras is None or (backend := keras.config.backend()) != "torch":
        raise SetupError(
            f"Keras is set to run on '{backend}'; set KERAS_BACKEND=torch in the environment of "
            "the driver and of the workers"
        )
    return keras


class _HuggingFace(nn.Module):
    """A vision model's embedding: `image_embeds`, `pooler_output`, or the mean over positions."""

    def __init__(self, model: Any, *, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A model of pictures and texts, such as CLIP, has it.
        embed = getattr(self.model, "get_image_features", self.model)
        output = embed(pixel_values=images)
        vectors: torch.Tensor | None = getattr(output, "image_embeds", None)
        if vectors is None and self.pooled:
            vectors = getattr(output, "pooler_output", None)
        if vectors is not None:
            return vectors.flatten(1)
        states: torch.Tensor = output.last_hidden_state
        return states.mean(1) if states.ndim == 3 else states.mean((2, 3))


def _load_huggingface(path: Path) -> nn.Module:
    transformers = _required("transformers", extra="huggingface")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        architecture = (config.architectures or [""])[0]
        projects = architecture.endswith("WithProjection")
        kind = getattr(transformers, architecture) if projects else transformers.AutoModel
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    # What is missing was filled with random numbers, other ones in each process.
    missing = set(report["missing_keys"])
    unpooled = {name for name in missing if "pooler." in name}
    if lacking := sorted(missing - unpooled):
        raise SetupError(f"its weights lack {', '.join(lacking[:3])}")
    return _HuggingFace(model, pooled=not unpooled)


_FOLDER_FILES = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
)


def _pack_folder(folder: Path) -> bytes:
    """The folder's configuration and tensors in a zip archive, whose bytes tell of nothing else."""
    files = sorted(path for pattern in _FOLDER_FILES for path in folder.glob(pattern))
    if not any(path.suffix == ".safetensors" for path in files):
        raise SetupError(
            f"'{folder}' holds no .safetensors file: give a folder that save_pretrained wrote; "
            "weights in .bin files are pickles, and are not opened"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in files:
            # Of its own a ZipInfo has no time.
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    return buffer.getvalue()


# Pillow's numbers.
_RESAMPLE: Mapping[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}


def _folder_preprocessing(folder: Path) -> Preprocessing | None:
    """What `preprocessor_config.json` says, where this pipeline can do it."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    scaled = told.get("do_rescale", True) and math.isclose(
        told.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6
    )
    if not (scaled and told.get("do_resize", True) and told.get("resample", 2) in _RESAMPLE):
        raise SetupError(
            f"'{path}' asks for more than scaling, a crop from the middle and a normalization; "
            "declare the nearest to it as encoder.preprocessing"
        )
    normalizes = told.get("do_normalize", True)
    resize_px, crop_px = _sides(told)
    return Preprocessing(
        resize_px=resize_px,
        crop_px=crop_px,
        interpolation=_RESAMPLE[told.get("resample", 2)],
        mean=tuple(told["image_mean"]) if normalizes else (0.0, 0.0, 0.0),
        std=tuple(told["image_std"]) if normalizes else (1.0, 1.0, 1.0),
    )


def _sides(told: Mapping[str, Any]) -> tuple[int, int]:
    """The shorter side after scaling, and the crop's.

    A size of both sides squeezes a picture into a square; here the square is cut from its middle.
    """
    size_px = _side(told["size"])
    if told.get("do_center_crop"):
        return size_px, _side(told["crop_size"])
    # ConvNeXt's way: below 384 pixels a margin is scaled too, and cut off.
    scale = told.get("crop_pct") or 1
    return (int(size_px / scale) if size_px < 384 else size_px), size_px


def _side(size: Any) -> int:
    match size:
        case int():
            return size
        case {"shortest_edge": int(side)}:
            return side
        case {"height": int(height), "width": int(width)} if height == width:
            return height
    raise SetupError(
        f"preprocessor_config.json has the size {size}, which is no square; declare "
        "encoder.preprocessing"
    )


PROGRAMS: Mapping[str, Program] = {
    "export": Program(_Exported),
    "onnx": Program(_Onnx),
    "keras": Program(_Keras),
    "huggingface": Program(
        _load_huggingface, pack=_pack_folder, declared=_folder_preprocessing, fixed=False
    ),
}
