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

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from embedstream_core.errors import MissingExtra, SetupError
from embedstream_core.extras import require_extra
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.models.files.export_guard import open_exported
from embedstream_core.models.files.file_kinds import refuse_other_kinds
from embedstream_core.models.files.huggingface import load_folder, pack_folder
from embedstream_core.models.files.image_processors import read_preprocessing

__all__ = ["PROGRAMS", "FixedModule", "Program", "is_fixed", "open_program"]


class FixedModule(nn.Module):
    """A module that runs as it is, in float32: its layers cannot be rounded, fused or compiled.

    It takes float32 of shape (n, 3, crop_px, crop_px), normalized, on any device.
    """


@dataclass(frozen=True, slots=True)
class Program:
    """A kind of file.

    `load` makes a module of the packed file; `pack` gives the bytes that travel, the same ones for
    the same model, and refuses what is known to be something else; `declared` is the preprocessing
    that lies with the weights. `fixed` programs load as a `FixedModule`.
    """

    load: Callable[[Path], nn.Module]
    pack: Callable[[Path], bytes]
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


_ONNX_FLOATS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


class _Onnx(FixedModule):
    def __init__(self, path: Path) -> None:
        super().__init__()
        with require_extra("onnx", feature="encoder 'onnx'"):
            import onnxruntime
        self.runtime = onnxruntime
        self.content: bytes | None = path.read_bytes()
        self.session: Any = None
        self.output = ""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.content is not None:
            self.session, self.content = self._open(self.content), None
        source = self.session.get_inputs()[0]
        order = (0, 2, 3, 1) if _is_channels_last(source.shape) else (0, 1, 2, 3)
        if source.type not in _ONNX_FLOATS:
            raise SetupError(
                f"the onnx file takes {source.type}: export it with an input of floats, which are "
                "the normalized pixels"
            )
        pixels = images.permute(order).contiguous().cpu().numpy().astype(_ONNX_FLOATS[source.type])
        if not self.output:
            # Two pictures in any case: of one, other outputs may look like its vector.
            self.output = self._choose_output(source.name, np.concatenate([pixels, pixels])[:2])
        (vectors,) = self.session.run([self.output], {source.name: pixels})
        return torch.from_numpy(vectors)

    def _choose_output(self, source: str, pictures: Any) -> str:
        """The only output, or the only one that is a vector of floats for each of two pictures.

        What it gives decides: a declared shape may be unknown.
        """
        names = [str(output.name) for output in self.session.get_outputs()]
        if len(names) == 1:
            return names[0]
        values = self.session.run(names, {source: pictures})
        chosen = [name for name, value in zip(names, values, strict=True) if _are_vectors(value)]
        if len(chosen) == 1:
            return chosen[0]
        shapes = ", ".join(
            f"{name} {getattr(value, 'shape', '')}"
            for name, value in zip(names, values, strict=True)
        )
        raise SetupError(
            f"the onnx file has {len(names)} outputs, of which {len(chosen) or 'none'} are one "
            f"vector for each picture ({shapes} for 2 pictures); export it with the one that is "
            "meant"
        )

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


def _are_vectors(value: Any) -> bool:
    is_float = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    return is_float and value.ndim == 2 and len(value) == 2


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
    if backend == "torch":
        with require_extra("keras", feature="encoder 'keras'"):
            import keras
        backend = keras.config.backend()
    if backend != "torch":
        raise SetupError(
            f"Keras is set to run on '{backend}'; set KERAS_BACKEND=torch in the environment of "
            "the driver and of the workers"
        )
    return keras


def _read_file(path: Path, kind: str) -> bytes:
    refuse_other_kinds(path, wanted=(kind,))
    return path.read_bytes()


PROGRAMS: Mapping[str, Program] = {
    "export": Program(_Exported, pack=partial(_read_file, kind="export")),
    "onnx": Program(_Onnx, pack=partial(_read_file, kind="onnx")),
    "keras": Program(_Keras, pack=partial(_read_file, kind="keras")),
    "huggingface": Program(load_folder, pack=pack_folder, declared=read_preprocessing, fixed=False),
}
