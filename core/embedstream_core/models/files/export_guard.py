"""Files of `torch.export`, opened only after all that torch would run was read and allowed.

`torch.export.load` is no safe way to open a stranger's file: it unpickles weights, constants and
example inputs, evaluates the sizes' expressions as Python, writes the nodes' names into Python that
it runs, runs the guards' code and loads compiled libraries. So a file may hold only records known
here, no pickle but of plain tensors, names that are names, expressions of arithmetic, and calls of
ATen's operators. Guards are never run.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from embedstream_core.errors import SetupError

__all__ = ["open_exported"]

_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/.*"
)
_PAYLOADS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_GRAPH = "models/model.json"
_EXAMPLES = "data/sample_inputs/model.pt"

_NAME = re.compile(r"[\w.+-]*")
# from_file opens whatever path it is given.
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_\w+"
)
# Sizes, as sympy writes them: no dot, so that nothing has attributes, and only these words.
_ARITHMETIC = re.compile(
    r"([\s(),=+*/<>-]|\b\d+\b|'?\b[su]\d+\b'?|\b(Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|Mod"
    r"|FloorDiv|CleanDiv|CeilDiv|PythonMod|IntTrueDiv|PowByNatural|positive|nonnegative|nonzero"
    r"|integer|real|evaluate|True|False)\b)*"
)
_STRINGS = {
    "target": _OPERATOR,
    "as_operator": _OPERATOR,
    "expr_str": _ARITHMETIC,
    # Such as how to pad, or what einsum sums.
    "as_string": re.compile(r"[\w\s.,>+-]*"),
    # Of tuples and lists, and of dicts without keys.
    "context": re.compile(r"null|\[\]"),
}

_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def open_exported(path: Path) -> ExportedProgram:
    """Open a file that `torch.export.save` wrote.

    Raises:
        SetupError: the file could make torch run something other than ATen's operators.
        Exception: whatever torch raises on a file that is broken.
    """
    # torch.export.load would go on with an older format, which is all pickles, where this fails.
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

    with PT2ArchiveReader(str(path)) as archive:
        _check_records(archive.get_file_names())
        for name in _PAYLOADS:
            _check_payloads(json.loads(archive.read_bytes(name)))
        _check_values(json.loads(archive.read_bytes(_GRAPH)))
        _check_examples(archive.read_bytes(_EXAMPLES))
    with path.open("rb") as file:
        return load_pt2(file).exported_programs["model"]


def _refused(what: str) -> SetupError:
    return SetupError(
        f"it was not opened, for {what} could run code: save a program of plain tensors and "
        "operators with torch.export.save, or use ONNX"
    )


def _check_records(names: list[str]) -> None:
    for name in names:
        if not _RECORDS.fullmatch(name):
            raise _refused(f"its record '{name}'")


def _check_payloads(payloads: Any) -> None:
    for name, payload in payloads["config"].items():
        if payload["use_pickle"] is not False:
            raise _refused(f"its pickled tensor '{name}'")
    _check_values(payloads)


def _check_examples(pickled: bytes) -> None:
    try:
        torch.load(io.BytesIO(pickled), weights_only=True)
    except Exception:
        raise _refused("its example inputs, which are more than tensors,") from None


def _check_values(value: Any, key: str = "") -> None:
    """Check every text below a JSON value; `key` is what it is called."""
    match value:
        case dict() if key == "custom_obj_values" and value:
            raise _refused(f"its object '{min(value)}'")
        case dict():
            for name, inner in value.items():
                _check_text(name, "")
                if not _is_unread(name, inner):
                    _check_values(inner, name)
        case list():
            for inner in value:
                _check_values(inner, key)
        case str() if key in ("in_spec", "out_spec"):
            _check_containers(json.loads(value))
        case str():
            _check_text(value, key)


def _is_unread(name: str, value: Any) -> bool:
    """Whether a value is free text that torch shows in errors, or guards, which are not run.

    A tensor may have these names too, but its value is no map and no list of mere texts.
    """
    match name, value:
        case "metadata", dict():
            return all(isinstance(text, str) for text in value.values())
        case "guards_code", list():
            return all(isinstance(text, str) for text in value)
    return False


def _check_text(text: str, key: str) -> None:
    if not _STRINGS.get(key, _NAME).fullmatch(text):
        raise _refused(f"'{text[:80]}'" + (f" as {key}" if key else ""))


def _check_containers(spec: Any) -> None:
    """Check how arguments are nested: of other types torch imports the module that is named."""
    match spec:
        case Mapping():
            if spec.get("type") not in _CONTAINERS:
                raise _refused(f"its argument of type '{spec['type']}'")
            _check_values(spec)
            _check_containers(spec.get("children_spec"))
        case list():
            for inner in spec:
                _check_containers(inner)
