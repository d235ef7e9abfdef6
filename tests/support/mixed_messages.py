"""Messages of every modality, sound and bad, and what becomes of each."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import soundfile
from PIL import Image

from clips import make_clip, make_file
from embedstream_core.errors import Code
from embedstream_core.settings import DecodeSettings, FetchPolicy, ModalityName
from pictures import encoded, png_chunk, real_pictures

__all__ = ["Kind", "allow_references", "build_kinds", "build_large_kinds"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of message: its value, None for a tombstone, and the outcome by hand.

    Encoders of `modality` have a row each; if it is None, no encoder is chosen, and the only row
    names no model. `media_type` is None if no bytes were read, and `code` if it is embedded.
    """

    value: bytes | None
    modality: ModalityName | None
    media_type: str | None
    code: Code | None = None


def allow_references(folder: Path) -> FetchPolicy:
    """Return the policy that the messages' references need."""
    return FetchPolicy(schemes=("file",), folders=(folder,), attempts=1)


def build_kinds(folder: Path) -> Mapping[str, Kind]:
    """Return all kinds of small messages by name; the folder holds what some refer to."""
    folder.mkdir(exist_ok=True)
    return {
        **_build_images(folder),
        **_build_texts(folder),
        **_build_clips(folder),
        **_build_bad_images(),
        **_build_bad_texts(),
        **_build_bad_clips(),
        **_build_unrouted(folder),
    }


def build_large_kinds() -> Mapping[str, Kind]:
    """Return kinds of 10 MB."""
    word, text = b"a" * 10_000_000, "text/plain"
    noise = base64.b64encode(zlib.compress(word))
    return {
        "text-of-one-word": Kind(word, "text", text, Code.TEXT_TOO_LARGE),
        "text-of-one-word-in-json": Kind(
            b'{"text": "' + word + b'"}', "text", text, Code.TEXT_TOO_LARGE
        ),
        "json-without-end": Kind(b'{"a":' * 2_000_000, None, None, Code.MESSAGE_MALFORMED),
        "json-of-one-attribute": Kind(
            b'{"note": "' + word + b'", "data": "' + noise + b'"}',
            None,
            "application/octet-stream",
            Code.MEDIA_UNSUPPORTED,
        ),
        "image-with-a-long-end": Kind(
            encoded(Image.new("RGB", (9, 9), "red"), "JPEG") + bytes(10_000_000),
            "image",
            "image/jpeg",
        ),
        "audio-of-a-minute": Kind(make_file("pcm_16", 57.0), "audio", "audio/wav"),
    }


def _build_images(folder: Path) -> dict[str, Kind]:
    picture = Image.open(io.BytesIO(real_pictures()["coffee.png"])).convert("RGB").resize((48, 40))
    by_format = {name: encoded(picture, name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP")}
    jpeg = by_format["JPEG"]
    (folder / "picture.jpg").write_bytes(jpeg)
    values = {
        "image-data": _write_json(data=_to_base64(jpeg)),
        "image-data-uri": _write_json(uri="data:image/png;base64," + _to_base64(jpeg)),
        "image-reference": _write_json(uri=f"file://{folder}/picture.jpg"),
    }
    files = {
        f"image-{name.lower()}": Kind(content, "image", f"image/{name.lower()}")
        for name, content in by_format.items()
    }
    return files | {name: Kind(value, "image", "image/jpeg") for name, value in values.items()}


def _build_texts(folder: Path) -> dict[str, Kind]:
    (folder / "text.txt").write_text("a text in a file")
    values = {
        "text-plain": b"the quick brown fox",
        "text-mixed-scripts": "Straße 東京 مرحبا Ελλάδα नमस्ते 🙂 e\u0301\u202e abc".encode(),
        "text-long": b"one two three " * 5000,
        "text-with-lines": b"\tone\r\ntwo\n\n",
        "text-with-a-mark": b"\xef\xbb\xbfmarked",
        "text-in-brackets": b'["one", "two"]',
        "text-in-markup": b"<html><body>one</body></html>",
        "text-json": _write_json(text="the lazy dog"),
        "text-json-controls": _write_json(text="a\0b\x07c\x1b[0m"),
        "text-data": _write_json(data=_to_base64(b"a text in base64")),
        "text-reference": _write_json(uri=f"file://{folder}/text.txt"),
    }
    return {name: Kind(value, "text", "text/plain") for name, value in values.items()}


def _build_clips(folder: Path) -> dict[str, Kind]:
    kinds = {"pcm_16": "wav", "float": "wav", "flac_16": "flac", "vorbis": "ogg", "opus": "ogg"}
    files = {
        f"audio-{kind}": Kind(make_file(kind), "audio", f"audio/{name}")
        for kind, name in {**kinds, "mp3": "mpeg"}.items()
    }
    (folder / "clip.flac").write_bytes(make_file("flac_16", 2.0))
    return files | {
        "audio-data": Kind(
            _write_json(data=_to_base64(make_file("mp3", 1.5))), "audio", "audio/mpeg"
        ),
        "audio-reference": Kind(
            _write_json(uri=f"file://{folder}/clip.flac"), "audio", "audio/flac"
        ),
    }


def _build_bad_images() -> dict[str, Kind]:
    png = encoded(Image.new("RGB", (60, 60), "red"))
    jpeg = encoded(Image.new("RGB", (60, 60), "red"), "JPEG")
    bomb = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    cases = {
        "image-cut": (jpeg[: len(jpeg) // 2], "image/jpeg", Code.IMAGE_CORRUPT),
        "image-broken": (png[:45] + b"?" * 20 + png[65:], "image/png", Code.IMAGE_CORRUPT),
        "image-bomb": (png[:8] + bomb + png[33:], "image/png", Code.IMAGE_TOO_LARGE),
        "image-tiff": (
            encoded(Image.new("L", (9, 9)), "TIFF"),
            "image/tiff",
            Code.IMAGE_UNSUPPORTED,
        ),
        "image-svg": (
            b'<svg xmlns="http://www.w3.org/2000/svg"/>',
            "image/svg+xml",
            Code.IMAGE_UNSUPPORTED,
        ),
    }
    return {name: Kind(value, "image", kind, code) for name, (value, kind, code) in cases.items()}


def _build_bad_texts() -> dict[str, Kind]:
    cases = {
        "text-blank": (b" \n\t ", Code.TEXT_EMPTY),
        "text-zero-width": ("\u200b\u200d\ufeff".encode(), Code.TEXT_EMPTY),
        "text-json-empty": (_write_json(text=""), Code.TEXT_EMPTY),
        "text-json-nul": (_write_json(text="\0\x01"), Code.TEXT_EMPTY),
        "text-too-long": (b"word " * 30_000, Code.TEXT_TOO_LARGE),
        "text-malformed-later": (b"word " * 1000 + b"\xff\xfe", Code.TEXT_MALFORMED),
        "text-surrogates-later": (b"word " * 1000 + b"\xed\xa0\x80", Code.TEXT_MALFORMED),
    }
    return {name: Kind(value, "text", "text/plain", code) for name, (value, code) in cases.items()}


def _build_bad_clips() -> dict[str, Kind]:
    cut = {"pcm_16": "wav", "flac_16": "flac", "vorbis": "ogg", "opus": "ogg", "mp3": "mpeg"}
    silent, aiff = io.BytesIO(), io.BytesIO()
    soundfile.write(silent, make_clip(0), 8000, format="WAV")
    soundfile.write(aiff, make_clip(0.1), 8000, format="AIFF")
    return {
        **{
            f"audio-cut-{kind}": Kind(
                make_file(kind)[: len(make_file(kind)) * 2 // 3],
                "audio",
                f"audio/{name}",
                Code.AUDIO_CORRUPT,
            )
            for kind, name in cut.items()
        },
        "audio-empty": Kind(silent.getvalue(), "audio", "audio/wav", Code.AUDIO_EMPTY),
        "audio-aiff": Kind(aiff.getvalue(), "audio", "audio/aiff", Code.AUDIO_UNSUPPORTED),
    }


def _build_unrouted(folder: Path) -> dict[str, Kind]:
    """Return what no encoder is chosen for."""
    (folder / "file.pdf").write_bytes(b"%PDF-1.7\n")
    with (folder / "large").open("wb") as file:
        # Of holes, and larger than what any modality takes.
        file.truncate(DecodeSettings.max_audio_bytes + 1)
    unknown = "application/octet-stream"
    unsupported = {
        "pdf": (b"%PDF-1.7\n1 0 obj", "application/pdf"),
        "pdf-reference": (_write_json(uri=f"file://{folder}/file.pdf"), "application/pdf"),
        "zip": (b"PK\x03\x04" + bytes(40), "application/zip"),
        "video": (b"\0\0\0\x20ftypisom" + bytes(40), "video/mp4"),
        "noise": (bytes(range(255, 100, -1)), unknown),
        "no-utf-8": (b"caf\xe9 au lait", unknown),
        "surrogates": (b"a\xed\xa0\x80b", unknown),
        "controls": (b"a\0b\x07c", unknown),
        "no-utf-8-data": (_write_json(data=_to_base64(b"caf\xe9")), unknown),
    }
    unread = {
        "json-broken": (b'{"text": "a', Code.MESSAGE_MALFORMED),
        "json-no-utf-8": (b'{"text": "caf\xe9"}', Code.MESSAGE_MALFORMED),
        "json-nested": (b'{"a":' * 2000, Code.MESSAGE_MALFORMED),
        "json-surrogate": (rb'{"text": "a\ud800b"}', Code.MESSAGE_MALFORMED),
        "json-surrogate-uri": (rb'{"uri": "file:///\udfff"}', Code.MESSAGE_MALFORMED),
        "json-number": (b'{"text": 7}', Code.MESSAGE_MALFORMED),
        "json-no-base64": (b'{"data": "?"}', Code.MESSAGE_MALFORMED),
        "json-without-content": (b"{}", Code.MESSAGE_INCOMPLETE),
        "json-two-contents": (_write_json(text="a", data="YQ=="), Code.MESSAGE_INCOMPLETE),
        "missing": (_write_json(uri=f"file://{folder}/missing"), Code.REFERENCE_NOT_FOUND),
        "large-reference": (
            _write_json(uri=f"file://{folder}/large"),
            Code.REFERENCE_TOO_LARGE,
        ),
        "denied": (_write_json(uri="file:///etc/hostname"), Code.REFERENCE_DENIED),
        "empty": (b"", Code.MEDIA_EMPTY),
        "tombstone": (None, Code.DELETED),
    }
    return {
        **{
            name: Kind(value, None, kind, Code.MEDIA_UNSUPPORTED)
            for name, (value, kind) in unsupported.items()
        },
        **{name: Kind(value, None, None, code) for name, (value, code) in unread.items()},
    }


def _write_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def _to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
