"""Decimal numbers as Avro and Protobuf carry them: an integer in bytes, and a scale."""

from __future__ import annotations

from decimal import Decimal

__all__ = ["MAX_SCALE", "write_decimal"]

MAX_SCALE = 1000
# A number of 256 bytes has 617 digits. The time to write one in decimal grows with their square.
_MAX_BYTES = 256


def write_decimal(unscaled: bytes, scale: int) -> str:
    """Return a number with all its digits.

    `unscaled` is an integer in two's complement, the highest byte first; `scale` says how many of
    its digits are after the point.

    Raises:
        ValueError: the number is too long to be written.
    """
    if len(unscaled) > _MAX_BYTES or abs(scale) > MAX_SCALE:
        raise ValueError(f"it has a decimal of {len(unscaled)} bytes and scale {scale}")
    number = int.from_bytes(unscaled, "big", signed=True)
    digits = tuple(map(int, str(abs(number))))
    return format(Decimal((int(number < 0), digits, -scale)), "f")
