"""Turn a row's content into a preview that is safe to show in a browser.

Pictures and sounds are encoded again from what the sandbox decoded. Only the beginning of a text is
passed on as it was sent, as plain text.
"""

from __future__ import annotations

import io
import re
import wave

import numpy as np
from PIL import Image

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.monitor.viewer import Preview, RowPosition
from embedstream.monitor.viewing.contents import Content, Contents
from embedstream.monitor.viewing.rows import Row, Rows, shorten
from embedstream_core.errors import Code, ItemError, SetupError, build_decode_error
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.media.detect import detect_type, find_modality
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.media.modality import Sample
from embedstream_core.media.sandbox import SandboxedDecoder
from embedstream_core.redaction import redact_prose
from embedstream_core.settings import Isolation

__all__ = ["Previews"]

_SIDE = 320
_RATE_HZ, _SOUND_S = 16_000, 10
_MOST_CHARACTERS = 500
# With a fetch or a message before it, sooner than the viewer's limit ends the whole process.
_DECODE_S = 8.0
# Up to 320 KB each.
_KEPT = 128

_WHOLE = ImagePreprocessing(
    _SIDE, _SIDE, "bicubic", mean=(1, 1, 1), std=(1, 1, 1), crop_mode="border"
)
_BEGINNING = AudioPreprocessing(_RATE_HZ, _RATE_HZ * _SOUND_S, _RATE_HZ * _SOUND_S)

# Controls except for tabs and line ends, and characters that reverse the text around them.
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Previews:
    """Previews of rows; the newest are kept."""

    def __init__(self, config: StreamConfig | BulkFilesConfig, rows: Rows) -> None:
        self._rows = rows
        self._contents = Contents(config)
        decode = config.decode
        timeout_s = min(decode.timeout_s, _DECODE_S)
        self._decoder = SandboxedDecoder(
            {"image": (_WHOLE,), "audio": (_BEGINNING,)},
            decode.settings,
            isolation=Isolation(timeout_s, decode.isolated_memory_bytes),
        )
        self._kept: dict[object, Preview] = {}

    def preview(self, position: RowPosition) -> Preview:
        """Return what can be shown of a row.

        Raises:
            SetupError: the table has no row of that message.
        """
        row = self._rows.find_row(position)
        # A replay makes a row of a message again.
        key = self._rows.table_id, position, row["processed_at"]
        try:
            made = self._kept.pop(key, None) or self._make(row)
        except SetupError as error:
            # Not kept: a store or a broker may answer again.
            return Preview("none", note=shorten(str(error)))
        self._kept[key] = made
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return made

    def close(self) -> None:
        """End the sandbox, and close the connections."""
        self._decoder.close()
        self._contents.close()

    def _make(self, row: Row) -> Preview:
        found = self._contents.read(row)
        if found.trouble:
            return _describe(found.content, found.trouble)
        try:
            return self._decode(found, row)
        except ItemError as error:
            return _describe(found.content, f"{error.code}: {error.message}")

    def _decode(self, found: Content, row: Row) -> Preview:
        kind = found.media_type or detect_type(found.content)
        if row["error"] is None:
            # The models got it as that.
            kind = (row["media"] or {}).get("type") or kind
        match find_modality(kind):
            case "text":
                return Preview("text", media_type="text/plain", text=_read_beginning(found.content))
            case "image":
                (sample,) = self._decoder.decode(found.content, "image")
                return _make_picture(sample)
            case "audio":
                (sample,) = self._decoder.decode(found.content, "audio")
                return _make_sound(sample)
        return _describe(found.content, "")


def _make_picture(sample: Sample) -> Preview:
    """Return the pixels without the border that makes them a square."""
    pixels, width, height = sample.parts[0], sample.media.width, sample.media.height
    # A file that has taken over the sandbox may have sent anything.
    if pixels.shape != (_SIDE, _SIDE, 3) or pixels.dtype != np.uint8:
        raise _refuse_sample()
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise _refuse_sample()
    # As `locate_crop` scales and centres it.
    ratio = max(width, height) / _SIDE
    across, down = max(1, round(width / ratio)), max(1, round(height / ratio))
    left, top = (_SIDE - across) // 2, (_SIDE - down) // 2
    file = io.BytesIO()
    Image.fromarray(pixels[top : top + down, left : left + across]).save(file, "PNG")
    return Preview("image", content=file.getvalue(), media_type="image/png")


def _make_sound(sample: Sample) -> Preview:
    samples, duration_s = sample.parts[0], sample.media.duration_s
    if samples.ndim != 1 or samples.dtype != np.float32 or not isinstance(duration_s, float):
        raise _refuse_sample()
    levels = np.clip(np.nan_to_num(samples[: _RATE_HZ * _SOUND_S]), -1, 1)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(_RATE_HZ)
        writer.writeframes((levels * 32_767).astype("<i2").tobytes())
    return Preview("audio", content=file.getvalue(), media_type="audio/wav", duration_s=duration_s)


def _refuse_sample() -> ItemError:
    return build_decode_error(Code.DECODER_CRASHED, "the decoder's answer is no sample")


def _describe(content: bytes, trouble: str) -> Preview:
    """Return the beginning of what looks like a text, or the type and the size of other bytes."""
    kind = detect_type(content)
    if find_modality(kind) == "text" or kind == "image/svg+xml":
        # A message that could not be read may hold a signed reference.
        text = redact_prose(_read_beginning(content))
        return Preview("text", media_type="text/plain", text=text, note=shorten(trouble))
    described = f"{kind}, {len(content):,} bytes"
    return Preview("none", note=shorten(f"{described}: {trouble}" if trouble else described))


def _read_beginning(content: bytes) -> str:
    """Return the first characters of a text; a character has up to four bytes."""
    start = content[: 4 * _MOST_CHARACTERS + 4].decode("utf-8-sig", "replace")
    text = _UNSEEN.sub("\ufffd", start[:_MOST_CHARACTERS])
    return f"{text}…" if len(start) > _MOST_CHARACTERS else text
