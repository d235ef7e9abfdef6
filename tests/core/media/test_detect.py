"""The media type of bytes, and the modality that it belongs to."""

from __future__ import annotations

import gzip
import io
import time
import zipfile

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clips import FILES, make_clip, make_file
from embedstream_core.errors import Code, ItemError
from embedstream_core.media.audio.modality import AUDIO
from embedstream_core.media.detect import detect_type, find_modality
from embedstream_core.settings import FORMATS, DecodeSettings
from pictures import encoded, real_pictures

ID3 = b"ID3\4\0\0" + bytes([0, 0, 1, 2]) + b"TIT2" + bytes(126)


def sound(container: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_clip(0.1), 44_100, format=container, subtype=subtype)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


@pytest.mark.parametrize("format_", FORMATS)
def test_images_that_are_decoded(format_: str) -> None:
    noise = np.random.default_rng(0).integers(256, size=(9, 8, 3), dtype=np.uint8)
    for image in (Image.new("RGB", (4, 4)), Image.fromarray(noise)):
        assert detect_type(encoded(image, format_)) == f"image/{format_.lower()}"


def test_real_pictures() -> None:
    endings = {"jpg": "image/jpeg", "png": "image/png", "gif": "image/gif"}
    for name, content in real_pictures().items():
        assert detect_type(content) == endings[name.rpartition(".")[2]], name


@pytest.mark.parametrize("kind", FILES)
def test_clips_that_are_decoded(kind: str) -> None:
    types = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mpeg"}
    expected = f"audio/{types[FILES[kind][0]]}"
    for content in (make_file(kind), ID3 + make_file(kind), make_file(kind)[:4000]):
        assert detect_type(content) == expected
    assert AUDIO.identify(make_file(kind), DecodeSettings()).media_type == expected


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ("RF64", "audio/wav"),
        ("W64", "audio/wav"),
        ("AIFF", "audio/aiff"),
        ("AU", "audio/basic"),
        ("CAF", "audio/x-caf"),
    ],
)
def test_clips_that_are_not_decoded(container: str, expected: str) -> None:
    content = sound(container)
    assert detect_type(content) == expected
    with pytest.raises(ItemError) as caught:
        AUDIO.identify(content, DecodeSettings())
    assert caught.value.code == Code.AUDIO_UNSUPPORTED


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"#!AMR\n\x3c\x91\x17", "audio/amr"),
        (b"MThd\0\0\0\6\0\1", "audio/midi"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "audio/mp4"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc\xde\x04", "audio/aac"),
        (b"OggS\0\2" + bytes(21) + b"\x2a\x80theora\3\2\1", "video/ogg"),
        (b"OggS\0\2" + bytes(21) + b"\x50Speex   1.2", "audio/ogg"),
        (b"OggS\0\2" + bytes(21) + b"\x2aunknown", "application/ogg"),
        (b"II*\0\10\0\0\0", "image/tiff"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "image/avif"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "image/heic"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video/mp4"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x82\x84webm\x42", "video/webm"),
        (b"RIFF\x24\0\0\0AVI LIST", "video/x-msvideo"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "application/pdf"),
        (b"%PDF-1.4\nonly text", "application/pdf"),
        (zipped(), "application/zip"),
        (gzip.compress(b"text", mtime=0), "application/gzip"),
        (b"PAR1\x15\4\x15", "application/vnd.apache.parquet"),
        (b"", "application/octet-stream"),
        (bytes(5000), "application/octet-stream"),
        (b"\x80\x81\x82", "application/octet-stream"),
        # Four bytes that begin a frame of MP3, but no second one.
        (b"\xff\xfb\x90\x44" + b"\xaa" * 1000, "application/octet-stream"),
    ],
)
def test_other_content(content: bytes, expected: str) -> None:
    assert detect_type(content) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "text/plain"),
        ("Grüße, 世界 🌍\r\n\tzweite Zeile\f", "text/plain"),
        ("\ufeffwith a byte order mark", "text/plain"),
        # How files of other kinds begin.
        ("BMW builds cars", "text/plain"),
        ("GIF89a is a format", "text/plain"),
        ("RIFF is a container", "text/plain"),
        ("OggS, fLaC and ID3", "text/plain"),
        ("[1] is a footnote", "text/plain"),
        ("{braces}", "text/plain"),
        ("[" * 4000, "text/plain"),
        (' {"a": [1, 2]}\n', "application/json"),
        ("<!DOCTYPE html><html></html>", "text/html"),
        ("\n<HTML lang='en'>", "text/html"),
        ('<?xml version="1.0"?><note/>', "text/xml"),
        ('<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"),
        ('<?xml version="1.0"?>\n<!-- made -->\n<svg width="1"/>', "image/svg+xml"),
        ("<svgs are many", "text/plain"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert detect_type(text.encode()) == expected


@pytest.mark.parametrize("control", [b"\0", b"\x07", b"\x1b", b"\x7f", b"\x0b"])
def test_a_text_with_control_characters_is_unknown(control: bytes) -> None:
    assert detect_type(b"text " + control) == "application/octet-stream"


def test_a_text_that_is_not_utf_8_is_unknown() -> None:
    for content in ("Grüße".encode("latin-1"), "text".encode("utf-16"), b"\xed\xa0\x80", b"a\xc3"):
        assert detect_type(content) == "application/octet-stream"


@pytest.mark.parametrize("shift", range(4))
def test_a_character_may_lie_across_the_end_of_what_is_read(shift: int) -> None:
    assert detect_type(b"a" * shift + "🌍".encode() * 2000) == "text/plain"


@pytest.mark.parametrize(
    "content",
    [
        b"a" * 2**25,
        b"<" * 2**25,
        b"<?xml" + b" <!--" * 2**22,
        b"<!-- -->" * 2**22,
        b"[" * 2**25,
        bytes(2**25),
        b"\xff\xfb\x90\x44" * 2**23,
        b"ID3\4\0\0\0\0\0\0" * 2**21,
        b"\x47" * 2**25,
    ],
    ids=lambda content: repr(content[:10]),
)
def test_large_content_takes_no_longer(content: bytes) -> None:
    started = time.process_time()
    detect_type(content)
    assert time.process_time() - started < 0.1


@given(st.binary(max_size=64), st.sampled_from([b"", ID3, b"OggS\0\2", b"RIFF....", b"<?xml "]))
def test_any_bytes_have_a_type(content: bytes, start: bytes) -> None:
    kind, _, name = detect_type(start + content).partition("/")
    assert kind in ("application", "audio", "image", "text", "video")
    assert name


@pytest.mark.parametrize(
    ("mime", "expected"),
    [
        ("image/png", "image"),
        ("image/svg+xml", "image"),
        ("audio/mpeg", "audio"),
        ("text/plain", "text"),
        ("Text/HTML; charset=utf-8", "text"),
        ("application/json", "text"),
        ("application/ogg", None),
        ("video/mp4", None),
        ("imagery/png", None),
        ("", None),
    ],
)
def test_the_modality_of_a_type(mime: str, expected: str | None) -> None:
    assert find_modality(mime) == expected
