"""ICC profiles made by hand, and what their colours are in sRGB by the formulas alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "ADOBE_PRIMARIES",
    "cmyk_profile",
    "convert_lab",
    "convert_rgb",
    "encode_srgb",
    "gray_profile",
    "rgb_profile",
]

Floats = npt.NDArray[np.float64]

ADOBE_PRIMARIES = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_SRGB_PRIMARIES = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
_D65, _D50 = np.array([0.95047, 1, 1.08883]), np.array([0.9642, 1, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def _read_matrix(primaries: Sequence[tuple[float, float]]) -> Floats:
    """Linear RGB of a white of D65 to XYZ of D50."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    to_d65 = columns * np.linalg.solve(columns, _D65)
    cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ _D65))
    matrix: Floats = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ to_d65
    return matrix


def encode_srgb(xyz: Floats) -> Floats:
    """XYZ of D50 to levels of sRGB, clipped (IEC 61966-2-1)."""
    linear = np.clip(xyz @ np.linalg.inv(_read_matrix(_SRGB_PRIMARIES)).T, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    levels: Floats = 255 * curved
    return levels


def convert_rgb(
    levels: npt.NDArray[np.uint8], primaries: Sequence[tuple[float, float]], gamma: float
) -> Floats:
    """Levels of an RGB space to levels of sRGB."""
    return encode_srgb((levels / 255) ** gamma @ _read_matrix(primaries).T)


def convert_lab(lab: Floats) -> Floats:
    """CIE L*a*b* of D50 to levels of sRGB (ISO 11664-4)."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return encode_srgb(xyz * _D50)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(space: bytes, kind: bytes, tags: Mapping[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """A profile of version 2.1 (ICC.1:1998-09)."""
    text = b"made by hand"
    description = (
        b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 68)
    )
    tags = {b"desc": description, b"wtpt": _xyz(_D50.tolist()), **tags}
    tags = {name: data + bytes(-len(data) % 4) for name, data in tags.items()}
    table, body = b"", b""
    first = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", first + len(body), len(data))
        body += data
    header = struct.pack(">I", first + len(body)) + bytes(4) + b"\x02\x10\0\0" + kind + space + pcs
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(*_D50.tolist())
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries: Sequence[tuple[float, float]], gamma: float) -> bytes:
    """A display's; Adobe RGB has a gamma of 2.19921875."""
    matrix = _read_matrix(primaries)
    tags = {}
    for index, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = _xyz(matrix[:, index].tolist())
        tags[name + b"TRC"] = _curve(gamma)
    return _profile(b"RGB ", b"mntr", tags)


def gray_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"mntr", {b"kTRC": _curve(gamma)})


def cmyk_profile(corners: npt.NDArray[np.uint8]) -> bytes:
    """A printer's: `corners` are the colours of no and all ink, uint8 of shape (2, 2, 2, 2, 3).

    They are L*a*b* as ICC encodes it in bytes.
    """
    linear = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += 4 * linear + corners.tobytes() + 3 * linear
    return _profile(b"CMYK", b"prtr", {b"A2B0": table}, pcs=b"Lab ")
