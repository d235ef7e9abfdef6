"""Find the media type of some bytes, for pipelines whose encoders accept several modalities.

Only the beginning is read, in a time that does not depend on the length: whatever begins as an
image, a text or a clip is refused by its modality, with a better reason, if the rest is not.

| content | type | modality |
| --- | --- | --- |
| the formats of images that are decoded, if `decode.formats` has them | `image/jpeg`, ... | image |
| JPEG XL, SVG and other images | `image/jxl`, ... | image, which refuses them |
| WAV, FLAC, Ogg with sound, MP3 | `audio/wav`, ... | audio |
| AAC, M4A, AIFF, AMR, MIDI, RF64 and others | `audio/aac`, ... | audio, which refuses them |
| UTF-8 without control characters other than white space | `text/plain` | text |
| such a text in JSON, XML or HTML | `application/json`, `text/xml`, `text/html` | text |
| documents, archives, videos, all else | `application/pdf`, `video/mp4`, ... | none |

JSON, XML and HTML are texts here because a pipeline with text encoders alone, which detects
nothing, embeds them too.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence

from embedstream_core.media.audio.formats import READERS as AUDIO_READERS
from embedstream_core.media.audio.header import MEDIA_TYPES
from embedstream_core.media.audio.mp3 import find_frames, skip_tags
from embedstream_core.media.audio.ogg import find_codec
from embedstream_core.media.image.readers import READERS as IMAGE_READERS
from embedstream_core.settings import ModalityName

__all__ = ["detect_type", "find_modality"]

_UNKNOWN = "application/octet-stream"

_START_BYTES = 4096

# The C0 controls and DEL, without tab, line feed, form feed and carriage return.
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")


def _compile(*pairs: tuple[str, bytes]) -> Sequence[tuple[str, re.Pattern[bytes]]]:
    return [(name, re.compile(pattern, re.DOTALL)) for name, pattern in pairs]


# These may look like text to their end.
_MARKED = _compile(("application/pdf", rb"%PDF-"), ("audio/amr", rb"#!AMR"))

_MARKUP = re.compile(rb"\s*<(\?xml|!--|!doctype|svg|html)[\s>-]", re.IGNORECASE)
_ELEMENT = re.compile(rb"<([a-z][\w.:-]*)[\s/>]", re.IGNORECASE)

_BINARY = _compile(
    *((f"image/{name.lower()}", pattern) for name, (pattern, _) in IMAGE_READERS.items()),
    ("image/jxl", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("image/x-icon", rb"\0\0\x01\0[^\0]\0"),
    ("image/vnd.adobe.photoshop", rb"8BPS\0"),
    *(
        (MEDIA_TYPES[name], pattern)
        for name, (pattern, _) in AUDIO_READERS.items()
        if name not in ("OGG", "MP3")
    ),
    ("audio/wav", rb"(RF64|BW64|RIFX)....WAVE|riff\x2e\x91\xcf\x11"),
    ("audio/aiff", rb"FORM....AIF[FC]"),
    ("audio/midi", rb"MThd\0|RIFF....RMID"),
    ("audio/basic", rb"\.snd\0"),
    ("audio/x-caf", rb"caff\0"),
    ("audio/mp4", rb"....ftyp(M4A|M4B|M4P)"),
    ("video/quicktime", rb"....ftypqt  "),
    ("video/3gpp", rb"....ftyp3g"),
    ("video/mp4", rb"....ftyp"),
    ("video/webm", rb"\x1a\x45\xdf\xa3.{0,60}webm"),
    ("video/x-matroska", rb"\x1a\x45\xdf\xa3"),
    ("video/x-msvideo", rb"RIFF....AVI "),
    ("video/x-flv", rb"FLV\x01"),
    ("video/mpeg", rb"\0\0\x01[\xb3\xba]"),
    # Two packets of 188 bytes.
    ("video/mp2t", rb"\x47.{187}\x47.{187}\x47"),
    ("application/zip", rb"PK(\x03\x04|\x05\x06)"),
    ("application/gzip", rb"\x1f\x8b\x08"),
    ("application/x-bzip2", rb"BZh[1-9]\x31\x41\x59\x26"),
    ("application/x-xz", rb"\xfd7zXZ\0"),
    ("application/zstd", rb"\x28\xb5\x2f\xfd"),
    ("application/x-7z-compressed", rb"7z\xbc\xaf\x27\x1c"),
    ("application/vnd.rar", rb"Rar!\x1a\x07"),
    ("application/x-tar", rb".{257}ustar"),
    ("application/vnd.apache.parquet", rb"PAR1"),
    ("application/vnd.sqlite3", rb"SQLite format 3\0"),
    ("application/msword", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
)

# Layer 0 distinguishes it from MP3 (ISO/IEC 13818-7, 6.2).
_AAC = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]|ADIF")


def detect_type(content: bytes) -> str:
    """Return the MIME type that the content seems to have, by how it begins; never raises.

    It is `application/octet-stream` if nothing is recognised, as for no bytes at all.
    """
    start = content[:_START_BYTES]
    if found := _match(_MARKED, start):
        return found
    if _is_text(start, is_whole=len(content) == len(start)):
        return _detect_text(content, start)
    # Before the others, which tags of ID3 may precede, too.
    first = skip_tags(content)
    start = content[first : first + _START_BYTES]
    if start.startswith(b"OggS"):
        if b"\x80theora" in start or b"BBCD\0" in start:
            return "video/ogg"
        return MEDIA_TYPES["OGG"] if find_codec(start) else "application/ogg"
    if found := _match(_BINARY, start):
        return found
    if find_frames(content, first) is not None:
        return MEDIA_TYPES["MP3"]
    if _AAC.match(start):
        return "audio/aac"
    # Only clips have such tags.
    return MEDIA_TYPES["MP3"] if first else _UNKNOWN


def find_modality(mime: str) -> ModalityName | None:
    """Return the modality whose encoders take content of a MIME type, which may have parameters."""
    name = mime.partition(";")[0].strip().lower()
    if name == "application/json":
        return "text"
    for modality in ("image", "text", "audio"):
        if name.startswith(f"{modality}/"):
            return modality
    return None


def _match(patterns: Sequence[tuple[str, re.Pattern[bytes]]], start: bytes) -> str | None:
    return next((name for name, pattern in patterns if pattern.match(start)), None)


def _is_text(start: bytes, *, is_whole: bool) -> bool:
    if not start or _CONTROL.search(start):
        return False
    try:
        # The last character may be cut.
        codecs.getincrementaldecoder("utf-8")().decode(start, final=is_whole)
    except UnicodeDecodeError:
        return False
    return True


def _detect_text(content: bytes, start: bytes) -> str:
    start = start.removeprefix(codecs.BOM_UTF8)
    if _MARKUP.match(start):
        element = _ELEMENT.search(start)
        name = element[1].lower() if element else b""
        return {b"svg": "image/svg+xml", b"html": "text/html"}.get(name, "text/xml")
    # A text may begin with a bracket, too; what is longer is not read to its end to tell.
    if start.lstrip()[:1] in (b"{", b"[") and len(content) <= _START_BYTES:
        try:
            json.loads(start)
        except (ValueError, RecursionError):
            return "text/plain"
        return "application/json"
    return "text/plain"
