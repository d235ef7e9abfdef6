"""What modalities share when they read a header: the format, the limits, and their errors."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from embedstream_core.errors import Code, build_decode_error
from embedstream_core.settings import ModalityName

__all__ = ["check_limit", "find_format", "read_by_format"]

HeaderT = TypeVar("HeaderT")
NameT = TypeVar("NameT", bound=str)

_NOUNS: Final[dict[ModalityName, str]] = {"image": "image", "text": "text", "audio": "clip"}


def check_limit(value: float, limit: float, description: str, *, modality: ModalityName) -> None:
    """Raise ItemError, `<modality>_too_large`, if a value is above its limit."""
    if value > limit:
        shown = f"{limit:g}" if isinstance(limit, float) else limit
        message = f"the {_NOUNS[modality]} has {description}; the limit is {shown}"
        raise build_decode_error(Code(f"{modality}_too_large"), message)


def find_format(
    content: bytes, readers: Mapping[NameT, tuple[bytes, Callable[[bytes], object]]]
) -> NameT | None:
    """Return the first format whose pattern matches the first bytes, or None."""
    starts = {name: start for name, (start, _) in readers.items()}
    return next((one for one in starts if re.match(starts[one], content, re.DOTALL)), None)


def read_by_format(
    content: bytes,
    readers: Mapping[NameT, tuple[bytes, Callable[[bytes], HeaderT]]],
    *,
    modality: ModalityName,
) -> HeaderT:
    """Identify a format by the first bytes, and read the header.

    `readers` has the pattern of each allowed format's first bytes, and what reads its header; the
    first that matches is taken.

    Raises:
        ItemError: none of the formats, of a kind that is not decoded here, or broken.
    """
    name = find_format(content, readers)
    if name is None:
        message = f"the bytes, starting {content[:12]!r}, are none of {', '.join(readers)}"
        raise build_decode_error(Code(f"{modality}_unsupported"), message)
    try:
        return readers[name][1](content)
    except NotImplementedError as error:
        message = f"the {name} is unsupported: {error}"
        raise build_decode_error(Code(f"{modality}_unsupported"), message) from None
    except (ValueError, struct.error) as error:
        message = f"the {name} is broken: {error}"
        raise build_decode_error(Code(f"{modality}_corrupt"), message) from None
