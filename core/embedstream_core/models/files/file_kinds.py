"""Find the kind of a file by its content, not by its name.

Downloads and clones may leave other files in a model's place: a Git LFS pointer, a web page, an
error in JSON. Users also give a model of one kind as another. The message names the kind of the
file and says what to do.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Collection
from pathlib import Path

from embedstream_core.errors import SetupError

__all__ = ["EXPORT_ADVICE", "identify_file", "refuse_other_kinds"]

EXPORT_ADVICE = "export the model with torch.onnx.export(...) and set encoder.name to onnx"

_KINDS = {
    "empty": "is empty; fetch it again",
    "zeros": "begins with zeros only, as after a download that failed; fetch it again",
    "image": "is an image or a document, and holds no weights; give the file that does",
    "archive": "is a compressed archive; unpack it, and give the file inside",
    "lfs": "is a Git LFS pointer, not the file that it points to; run `git lfs pull` in the clone",
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
    f"state_dict(), or {EXPORT_ADVICE}",
    "export": f"is a torch.export program, which is not opened; {EXPORT_ADVICE}",
    "onnx": "is an ONNX model; set encoder.name to onnx",
    "keras": "is a Keras model; set encoder.name to keras",
}

_START_BYTES = 512
_BLANKS = rb"[\xef\xbb\xbf \t\r\n]*"
# How files begin, tried in this order. A safetensors file begins with the length of its header,
# whose bytes may look like those of gzip.
_STARTS = {
    kind: re.compile(pattern, re.DOTALL)
    for kind, pattern in {
        "empty": rb"\Z",
        "zeros": rb"\0+\Z",
        "lfs": rb"version https://git-lfs",
        "image": rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF-",
        # zstd, xz, bzip2, 7z, RAR.
        "archive": rb"\x28\xb5\x2f\xfd|\xfd7zXZ|BZh|7z\xbc\xaf\x27\x1c|Rar!\x1a",
        "html": _BLANKS + rb"(?i:<(!doctype|!--|html|\?xml|head|body|svg|error))",
        "json": _BLANKS + rb"[{\[]",
        "safetensors": rb".{5}\0\0\0\{",
        "gzip": rb"\x1f\x8b",
        "hdf5": rb"\x89HDF\r\n",
        "zip": rb"PK",
        # Field 1 of ONNX's message is its format's version, a small number; another field follows.
        "onnx": rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]",
        # Pickles of the oldest protocol are text with unusual line ends; torch reports those.
        "text": rb"[\t\r\n -~]+\Z",
    }.items()
}


def refuse_other_kinds(path: Path, *, wanted: Collection[str]) -> None:
    """Raise SetupError for a file of a known kind that is not wanted."""
    kind = identify_file(path)
    if kind is not None and kind not in wanted:
        raise SetupError(f"'{path}' {_KINDS[kind]}")


def identify_file(path: Path) -> str | None:
    """Return the kind of a file, a key of `_KINDS`; None if its content shows none of them."""
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    kind = next((kind for kind, pattern in _STARTS.items() if pattern.match(start)), None)
    if kind is None and tarfile.is_tarfile(path):
        return "tar"
    if kind != "zip":
        return kind
    try:
        with zipfile.ZipFile(path) as archive:
            names = {*archive.namelist()}
    except zipfile.BadZipFile:
        return None
    # torch puts all its records into a folder that is named after the file.
    inner = {name.partition("/")[2] for name in names}
    if {"archive_format", "serialized_exported_program.json"} & (inner | names):
        return "export"
    if "data.pkl" in inner:
        return "torchscript" if "constants.pkl" in inner else "torch"
    return "keras" if {"config.json", "metadata.json"} <= names else "zip"
