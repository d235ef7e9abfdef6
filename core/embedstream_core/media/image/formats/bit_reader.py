"""Numbers in bits, as the headers of AV1 and HEVC store them."""

from __future__ import annotations

__all__ = ["BitReader"]


class BitReader:
    """Reads unsigned numbers from the first bits on, as the codecs' headers store them."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def read(self, bits: int) -> int:
        """Return a number of so many bits; raise ValueError after the end."""
        self._left -= bits
        if self._left < 0:
            raise ValueError("the header of its data is cut short")
        return self._value >> self._left & (1 << bits) - 1

    def read_exponential(self) -> int:
        """Return a number in an Exp-Golomb code (ISO/IEC 23008-2, 9.2)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a number in the header of its data is too long")
        return (1 << zeros) - 1 + self.read(zeros)
