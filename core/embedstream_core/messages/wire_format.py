"""Whether a value may be in Confluent's wire format: a zero, the schema's id in four bytes, data.

Other registries frame their values in other ways, which are recognised and not read.

Nothing here needs a registry; `registry/frame.py` reads the format for one.
"""

from __future__ import annotations

import re

__all__ = [
    "PREFIX_BYTES",
    "SCHEMA_HEADER",
    "find_foreign_frame",
    "find_schema_id",
    "has_boxes",
    "looks_like_media",
]

PREFIX_BYTES = 5
"""The length of the zero and the id, before a value's content."""

SCHEMA_HEADER = "__value_schema_id"
"""The header in which newer serializers name the schema, instead of in the value."""

# The boxes of ISO media (AVIF, HEIC, MP4), of JPEG 2000 and of JPEG XL.
_BOXES = re.compile(rb"\x00...(ftyp|moov|mdat|free|wide|jP  |JXL )", re.DOTALL)
# Other formats that begin with a zero: ICO and CUR, TGA, and JSON in UTF-16.
_OTHERS = re.compile(
    rb"\x00\x00[\x01\x02]\x00"
    rb"|\x00[\x00\x01][\x01-\x03\x09-\x0b]\x00\x00"
    rb"|\x00[{ \t\r\n]\x00"
)

# No image, clip or text begins like these. AWS Glue: its version, the compression and the id of the
# schema's version, a random UUID (AWSSchemaRegistryConstants of aws-glue-schema-registry). Apicurio
# before version 3: a zero and the id in eight bytes, of which the upper four are zeros. Avro: a
# marker and a fingerprint ("Single-object encoding" in the specification of Avro).
_FOREIGN_FRAMES = {
    "the wire format of AWS Glue's schema registry": re.compile(
        rb"\x03[\x00\x05].{6}[\x40-\x4f].[\x80-\xbf].{7}", re.DOTALL
    ),
    "Apicurio's wire format with ids of eight bytes": re.compile(
        rb"\x00{5}(?!\x00{4}).{4}[^\x00]", re.DOTALL
    ),
    "Avro's single-object encoding": re.compile(rb"\xc3\x01.{8}", re.DOTALL),
}


def find_foreign_frame(value: bytes) -> str | None:
    """Return what a value seems to be framed in, if that is not read here."""
    return next((name for name, start in _FOREIGN_FRAMES.items() if start.match(value)), None)


def find_schema_id(value: bytes) -> int | None:
    """Return the schema id of a value that may be in the wire format; None if it cannot be."""
    if not value.startswith(b"\0") or len(value) <= PREFIX_BYTES:
        return None
    schema_id = int.from_bytes(value[1:PREFIX_BYTES], "big", signed=True)
    # Ids count from 1.
    return schema_id if schema_id >= 1 else None


def has_boxes(value: bytes) -> bool:
    """Return whether a value begins with a box: its size in four bytes, then its known type."""
    return _BOXES.match(value) is not None


def looks_like_media(value: bytes) -> bool:
    """Return whether a value begins like content that begins with a zero.

    Values in the wire format with a few ids do so too, such as 65,536 or 131,072 to 131,327.
    """
    return has_boxes(value) or _OTHERS.match(value) is not None
