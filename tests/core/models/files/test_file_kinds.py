"""Files that are no model, or another kind of model, are identified by their content."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.models.files.file_kinds import identify_file
from embedstream_core.models.prepare import ModelSpec, prepare_model
from small_models import (
    DECLARED,
    huggingface_model,
    keras_model,
    onnx_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 46830571\n"
)

# Files that no encoder accepts.
FOREIGN = {
    "lfs": (POINTER, "git lfs pull"),
    "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "is a web page"),
    "json": (b'{"error": "Repository not found"}', "is JSON text"),
    "text": (b"Entry not found", "is plain text"),
    "empty": (b"", "is empty"),
    "gzip": (gzip.compress(b"weights"), "compressed with gzip"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
}


def refused(spec: ModelSpec) -> str:
    with pytest.raises(SetupError) as caught:
        prepare_model(spec)
    assert spec.weights in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("content", "words"), FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("encoder", ["resnet18", "onnx", "keras"])
def test_a_file_that_is_not_a_model_is_named(
    encoder: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(content)
    message = refused(ModelSpec(encoder, str(path), preprocessing=DECLARED))
    assert words in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_within_a_folder_is_named(name: str, tmp_path: Path) -> None:
    spec = huggingface_model(tmp_path)
    (Path(spec.weights) / name).write_bytes(POINTER)
    message = refused(spec)
    assert f"{name}' is a Git LFS pointer" in message


def test_kinds_of_models_are_identified(tmp_path: Path) -> None:
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "torch")
    safetensors.torch.save_file(state, tmp_path / "safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "torchscript"))
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("weights.pth", b"")
    with tarfile.open(tmp_path / "tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    for make in (onnx_model, keras_model):
        spec = make(tmp_path)
        Path(spec.weights).rename(tmp_path / spec.encoder)

    known = ["torch", "safetensors", "torchscript", "zip", "tar", "onnx", "keras"]
    assert [identify_file(tmp_path / name) for name in known] == known


def export_program(path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path)


def save_program_of_torch_2_6(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", b"{}")


ADVICE = "export the model with torch.onnx.export(...) and set encoder.name to onnx"


@pytest.mark.parametrize("save", [export_program, save_program_of_torch_2_6])
@pytest.mark.parametrize("encoder", ["resnet18", "onnx", "keras", "huggingface"])
def test_a_torch_export_program_is_refused(
    encoder: str, save: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "mine.pt2"
    save(path)
    message = refused(ModelSpec(encoder, str(path), preprocessing=DECLARED))
    assert message == f"'{path}' is a torch.export program, which is not opened; {ADVICE}"


@pytest.mark.parametrize("name", ["export", "torch.export"])
def test_the_encoder_of_torch_export_programs_is_refused(name: str) -> None:
    with pytest.raises(SetupError, match=re.escape(f"encoder '{name}' is not supported: {ADVICE}")):
        prepare_model(ModelSpec(name, "mine.pt2", preprocessing=DECLARED))


def test_a_pickle_of_no_known_kind_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert identify_file(path) is None


@pytest.mark.parametrize("given", [onnx_model, keras_model])
def test_a_program_given_as_weights_names_its_encoder(
    given: Callable[[Path], ModelSpec], tmp_path: Path
) -> None:
    spec = given(tmp_path)
    message = refused(ModelSpec("resnet18", spec.weights))
    assert message.endswith(f"set encoder.name to {spec.encoder}")


@pytest.mark.parametrize("encoder", ["onnx", "keras"])
def test_weights_given_as_a_program_are_named(encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    message = refused(ModelSpec(encoder, str(path), preprocessing=DECLARED))
    assert "was written by torch.save" in message


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (bytes(1000), "zeros"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"%PDF-1.7\n", "image"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "archive"),
        (b"BZh91AY", "archive"),
        (b"<!-- saved --><html>", "html"),
        (b"<svg xmlns='x'>", "html"),
    ],
)
def test_leftovers_of_downloads_are_identified(tmp_path: Path, start: bytes, kind: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(start)
    assert identify_file(path) == kind
