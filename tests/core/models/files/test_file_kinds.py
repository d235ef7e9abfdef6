"""Files that are something else than a model are called what they are."""

from __future__ import annotations

import gzip
import io
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
    exported_model,
    huggingface_model,
    keras_model,
    onnx_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 46830571\n"
)

# No file of any encoder.
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
@pytest.mark.parametrize("encoder", ["resnet18", "export", "onnx", "keras"])
def test_a_file_of_no_model_is_named(
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


def test_models_are_told_apart(tmp_path: Path) -> None:
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
    for make in (exported_model, onnx_model, keras_model):
        spec = make(tmp_path)
        Path(spec.weights).rename(tmp_path / spec.encoder)

    known = ["torch", "safetensors", "torchscript", "zip", "tar", "export", "onnx", "keras"]
    assert [identify_file(tmp_path / name) for name in known] == known


def test_a_pickle_of_no_known_kind_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert identify_file(path) is None


@pytest.mark.parametrize("given", [exported_model, onnx_model, keras_model])
def test_a_program_given_as_weights_names_its_encoder(
    given: Callable[[Path], ModelSpec], tmp_path: Path
) -> None:
    spec = given(tmp_path)
    message = refused(ModelSpec("resnet18", spec.weights))
    assert message.endswith(f"set encoder.name to {spec.encoder}")


@pytest.mark.parametrize("encoder", ["export", "onnx", "keras"])
def test_weights_given_as_a_program_are_named(encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    message = refused(ModelSpec(encoder, str(path), preprocessing=DECLARED))
    assert "was written by torch.save" in message


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (bytes(1000), "zeros"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"%PDF-1.7\n", "picture"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "archive"),
        (b"BZh91AY", "archive"),
        (b"<!-- saved --><html>", "html"),
        (b"<svg xmlns='x'>", "html"),
    ],
)
def test_what_a_download_may_leave_is_known(tmp_path: Path, start: bytes, kind: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(start)
    assert identify_file(path) == kind
