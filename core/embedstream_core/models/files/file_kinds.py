"""Find what kind of file lies where a model should, by its content and not by its name.

Downloads and clones leave other files in a model's place: a Git LFS pointer, a web page, an error
in JSON. And a model of one kind is given as another. Each is called what it is, with what to do.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Collection
from pathlib import Path

from embedstream_core.errors import SetupError

__all__ = ["identify_file", "refuse_other_kinds"]

_KINDS = {
    "empty": "is empty; fetch it again",
    "zeros": "begins with zeros alone, as after a download that failed; fetch it again",
    "picture": "is a picture or a document, and no weights; give the file that holds them",
    "archive": "is a compressed archive; unpack it, and give the file inside",
    "lfs": "is a Git LFS pointer, not the file that it stands for; run `git lfs pull` where it "
    "was cloned",
    "html": "is a web page (HTML or XML), not the file that the address should give; download "
    "the file itself: on the Hugging Face hub its address has /resolve/ in place of /blob/",
    "json": "is JSON text, which holds no weights; give the file that does",
    "text": "is plain text, which holds no weights; open it to see what went wrong, and fetch the "
    "file again",
    "gzip": "is compressed with gzip; unpack it, and give the file inside",
    "tar": "is a tar archive; unpack it, and give the file inside",
    "zip": "is a zip archive of other files; unpack it, and give the file inside",
    "hdf5": "is an HDF5 file, as older Keras wrote them; save the model as .keras with Keras 3, "
    "and set encoder.name to keras",
    "torch": "was written by torch.save; give it as the weights of a network of torch: "
    "encoder.name is then the network's name, or module:function",
    "safetensors": "is a safetensors file; give it as the weights of a network: encoder.name is "
    "then the network's name, or module:function",
    "torchscript": "is a TorchScript program, which is not opened; save the network's "
    "state_dict(), or write it with torch.export.save and set encoder.name to export",
    "export": "is a program of torch.export; set encoder.name to export",
    "onnx": "is an ONNX model; set encoder.name to onnx",
    "keras": "is a Keras model; set encoder.name to keras",
}

_TEXT_BYTES = 512
_MARKUP = (b"<!doctype", b"<!--", b"<html", b"<?xml", b"<head", b"<body", b"<svg", b"<error")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF-")
# zstd, xz, bzip2, 7z, RAR.
_ARCHIVES = (b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a")
# Field 1 of ONNX's message is the version of its format, a small number; another field follows.
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]")


def refuse_other_kinds(path: Path, *, wanted: Collection[str]) -> None:
    """Refuse a file whose kind is known and not among those wanted.

    Raises:
        SetupError: it is of another kind; the message says what it is and what to do.
        OSError: it cannot be read.
    """
    kind = identify_file(path)
    if kind is not None and kind not in wanted:
        raise SetupError(f"'{path}' {_KINDS[kind]}")


def identify_file(path: Path) -> str | None:
    """The kind of a file, a key of `_KINDS`; None where its content says nothing.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_TEXT_BYTES)
    stripped = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    match start:
        case b"":
            return "empty"
        case _ if start.startswith(b"version https://git-lfs"):
            return "lfs"
        case _ if not start.strip(b"\0"):
            return "zeros"
        case _ if start.startswith(_PICTURES):
            return "picture"
        case _ if start.startswith(_ARCHIVES):
            return "archive"
        case _ if stripped.startswith(_MARKUP):
            return "html"
        case _ if stripped.startswith((b"{", b"[")):
            return "json"
        case _ if start[8:9] == b"{" and start[5:8] == b"\0\0\0":
            return "safetensors"
        case _ if start.startswith(b"\x1f\x8b"):
            return "gzip"
        case _ if start.startswith(b"\x89HDF\r\n"):
            return "hdf5"
        case _ if start.startswith(b"PK"):
            return _identify_zip(path)
        case _ if _ONNX.match(start):
            return "onnx"
        case _ if tarfile.is_tarfile(path):
            return "tar"
    return "text" if _is_text(start) else None


def _identify_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None
    # torch puts all its records into a folder that is called like the file.
    inner = {name.partition("/")[2] for name in names}
    if {"models/model.json", "serialized_exported_program.json"} & {*inner, *names}:
        return "export"
    if "data.pkl" in inner:
        return "torchscript" if "constants.pkl" in inner else "torch"
    return "keras" if {"config.json", "metadata.json"} <= {*names} else "zip"


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("ascii")
    except UnicodeDecodeError:
        return False
    # Pickles of the oldest protocol are text too, and end their first lines oddly; torch says so.
    return all(character.isprintable() or character in "\t\r\n" for character in text)
