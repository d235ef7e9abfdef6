"""A position in bytes that anybody may have written, with a bound on what is made of them."""

from __future__ import annotations

__all__ = ["Cursor", "count_allowed_values"]

# A long takes up to ten bytes of seven bits each.
_MAX_LONG_BYTES = 10
# Enough for 30,000 small records in a few bytes each.
_FREE_VALUES = 100_000


def count_allowed_values(data: bytes) -> int:
    """Return how many values may be made of data, so that its length bounds the memory.

    Without a bound, a few bytes make any number of Avro's nulls, and two bytes a Protobuf message
    with all its fields. Lists of numbers have up to one for each byte.
    """
    return _FREE_VALUES + len(data)


class Cursor:
    """A position in the data of one value."""

    __slots__ = ("_spare_values", "data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self._spare_values = count_allowed_values(data)

    @property
    def rest(self) -> int:
        """The number of bytes after the position."""
        return len(self.data) - self.position

    def count_values(self, number: int) -> None:
        """Count values before they are read.

        Raises:
            ValueError: there are too many for the length of the data.
        """
        self._spare_values -= number
        if self._spare_values < 0:
            raise ValueError(
                f"it holds more than {count_allowed_values(self.data)} values in {len(self.data)} "
                "bytes"
            )

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes.

        Raises:
            ValueError: there are fewer, or the length is negative.
        """
        if not 0 <= length <= self.rest:
            raise ValueError(
                f"it needs {length} bytes at byte {self.position}, and {self.rest} are left"
            )
        start, self.position = self.position, self.position + length
        return self.data[start : self.position]

    def take_long(self) -> int:
        """Return the next integer of 64 bits: zigzag, seven bits in each byte.

        Raises:
            ValueError: the data ends within it, or it has more bits.
        """
        coded = shift = 0
        for byte in self.data[self.position : self.position + _MAX_LONG_BYTES]:
            coded |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 and coded < 2**64:
                self.position += shift // 7
                return (coded >> 1) ^ -(coded & 1)
        raise ValueError(f"it has no whole number of up to 64 bits at byte {self.position}")
