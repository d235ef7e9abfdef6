"""Audio: from the bytes of a clip to windows of mono samples, within limits.

| stored as | outcome |
| --- | --- |
| several channels | their mean |
| another sample rate | resampled by soxr at its quality HQ |
| samples all zero | heard; the model decides |
| floats beyond -1 to 1 | as they are, up to 65,536; above that, NaN and infinite: corrupt |
| a WAV whose data are shorter than stated | corrupt |
| a WAV of unknown length: 0, or 0x7FFFF000 bytes of data or more | heard to the end of the file |
| a WAV with bytes after its data; RIFF's own size | ignored |
| a FLAC without a length | heard to its last frame, within the limit |
| a FLAC with fewer samples than stated, or more | corrupt |
| a FLAC with a broken frame | corrupt; its MD5 is not compared |
| an Ogg with a broken, cut or missing page | corrupt |
| an Ogg that ends with a whole page, but is not marked as ended | heard, as a live recording |
| an Ogg with less sound than its last page states, or whose times go backwards | corrupt |
| an Ogg whose last page states a little less than it holds | cut there, as the format wants |
| an Ogg with several streams | unsupported |
| an MP3 with fewer frames than its first one states | corrupt |
| an MP3 without a stated length, or with a too small one | heard to its last frame |
| an MP3 whose last frame is cut, and no length is stated | heard up to it |
| an MP3 with bytes between frames that are no frame, or with another rate | corrupt |
| an MP3's frame whose inside is broken | silence; libsndfile prints a line on standard error |
| ID3, APE and other tags, pictures, chapters | ignored |
| ADPCM, GSM and other compressed samples in a WAV; RF64, W64, AIFF, AAC, Speex | unsupported |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedstream_core.errors import Code, ItemError, build_decode_error, explain
from embedstream_core.extras import require_extra
from embedstream_core.media.audio.formats import read_header
from embedstream_core.media.audio.header import AudioHeader
from embedstream_core.media.audio.preprocessing import AudioPreprocessing, cut_windows
from embedstream_core.media.headers import check_limit
from embedstream_core.media.modality import Allocate, Array, Arrays, Modality, Sample
from embedstream_core.records import Media
from embedstream_core.settings import DecodeSettings, ModalityName

__all__ = ["AUDIO", "require_decoders"]

_check_limit = partial(check_limit, modality="audio")

Samples = npt.NDArray[np.float32]

# Floats may peak above 1, and some writers keep the range of 16 bits. Far beyond that, squares
# overflow in float32.
_MAX_LEVEL = 2.0**16

_PROBE_S = 5.0


def require_decoders() -> None:
    """Raise MissingExtra if the packages that decode audio are not installed."""
    with require_extra("audio", feature="audio"):
        import soundfile
        import soxr
    del soundfile, soxr


class _Audio:
    """The modality `audio`; see `embedstream_core.media.modality`."""

    name: Final[ModalityName] = "audio"

    def identify(self, content: bytes, settings: DecodeSettings) -> AudioHeader:
        """Read the headers and apply the limits; no sample is decoded.

        Raises:
            ItemError: the clip is empty, over a limit, broken, or of a format not allowed.
        """
        if not content:
            raise build_decode_error(Code.AUDIO_EMPTY, "the clip has no bytes")
        _check_limit(len(content), settings.max_audio_bytes, f"{len(content)} bytes")
        header = read_header(content, settings.audio_formats)
        if header.channels < 1 or header.rate_hz < 1:
            message = f"the clip has {header.channels} channels at {header.rate_hz} Hz"
            raise build_decode_error(Code.AUDIO_CORRUPT, message)
        channels = f"{header.channels} channels"
        _check_limit(header.channels, settings.max_audio_channels, channels)
        _check_limit(header.rate_hz, settings.max_audio_rate_hz, f"{header.rate_hz} Hz")
        if header.frames == 0:
            raise build_decode_error(Code.AUDIO_EMPTY, "the clip has no samples")
        if header.duration_s is not None:
            _check_limit(header.duration_s, settings.max_audio_s, f"{header.duration_s:g} s")
        return header

    def decode(
        self,
        content: bytes,
        header: AudioHeader,
        preprocessings: Sequence[AudioPreprocessing],
        settings: DecodeSettings,
    ) -> list[Sample]:
        """Decode once, resample to each rate, and cut float32 windows by preprocessing.

        Raises:
            ItemError: the clip is broken, empty, or longer than its limit.
            MissingExtra: a package that decodes audio is not installed.
        """
        require_decoders()
        rates = {preprocessing.sample_rate_hz for preprocessing in preprocessings}
        try:
            by_rate, duration_s = _decode(header, rates, settings.max_audio_s)
        except (ItemError, MemoryError):
            raise
        except Exception as error:
            # libsndfile has a hundred errors for broken data; none of them may end the stream.
            reason = getattr(error, "error_string", explain(error))
            message = f"the {header.format} cannot be decoded: {reason}"
            raise build_decode_error(Code.AUDIO_CORRUPT, message) from error
        media = Media(header.media_type, duration_s=duration_s, truncated=False)
        return [
            Sample(cut_windows(by_rate[one.sample_rate_hz], one), media) for one in preprocessings
        ]

    def collate(self, parts: Sequence[Array], allocate: Allocate = np.empty) -> Arrays:
        """Return `samples`, float32 (parts, longest), padded at the end, and int64 `lengths`."""
        lengths = allocate((len(parts),), np.int64)
        lengths[:] = [len(part) for part in parts]
        samples = allocate((len(parts), int(lengths.max())), np.float32)
        samples[:] = 0
        for row, part in zip(samples, parts, strict=True):
            row[: len(part)] = part
        return samples, lengths

    def describe(self, header: AudioHeader) -> Media:
        """Return the format, and the duration if the file states it."""
        return Media(header.media_type, duration_s=header.duration_s)

    def make_probes(self, preprocessing: AudioPreprocessing) -> list[Sample]:
        """Return a sweep and noise, of 5 s each."""
        rate_hz = preprocessing.sample_rate_hz
        times = np.arange(round(_PROBE_S * rate_hz)) / rate_hz
        # From 100 Hz up to 3,100 Hz, and noise that comes and goes twice a second.
        sweep = np.sin(2 * np.pi * (100 + 300 * times) * times)
        noise = np.random.default_rng(0).normal(size=len(times)) * np.sin(2 * np.pi * times) ** 2
        media = Media("audio/wav", duration_s=_PROBE_S, truncated=False)
        clips = [(0.3 * clip).astype(np.float32) for clip in (sweep, noise)]
        return [Sample(cut_windows(clip, preprocessing), media) for clip in clips]


AUDIO: Final[Modality[AudioHeader, AudioPreprocessing]] = _Audio()
"""Its functions keep no state."""


def _decode(
    header: AudioHeader, rates: set[int], max_s: float
) -> tuple[Mapping[int, Samples], float]:
    """Return the clip in mono at each rate, and its duration in seconds.

    Each block is resampled at once, so that the clip is never held at its own rate, which may be
    far higher.
    """
    from embedstream_core.media.audio.sound_file import SoundStream

    frames = 0
    with SoundStream(header) as stream:
        rate_hz: int = stream.samplerate
        outputs = {rate: _Resampler(rate_hz, rate) for rate in rates}
        for block in stream.read_blocks():
            frames += len(block)
            _check_limit(frames / rate_hz, max_s, f"more than {max_s:g} s")
            with np.errstate(all="ignore"):
                # 4 % of the time of block.mean(axis=1), measured with two channels.
                mono: Samples = sum(block.T, np.zeros(1, np.float32)) / np.float32(block.shape[1])
                # A comparison with NaN is false.
                is_sound = bool(np.abs(mono).max() <= _MAX_LEVEL)
            if not is_sound:
                raise ValueError(f"it has samples that are no numbers, or above {_MAX_LEVEL:g}")
            for output in outputs.values():
                output.add(mono)
    if frames == 0:
        raise build_decode_error(Code.AUDIO_EMPTY, "the clip has no samples")
    return {rate: output.finish() for rate, output in outputs.items()}, frames / rate_hz


class _Resampler:
    """Collects a clip block by block, at another rate."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        import soxr

        self.blocks: list[Samples] = []
        self.stream: Any = None
        if from_hz != to_hz:
            self.stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")

    def add(self, mono: Samples) -> None:
        self.blocks.append(self.stream.resample_chunk(mono) if self.stream else mono)

    def finish(self) -> Samples:
        if self.stream:
            self.blocks.append(self.stream.resample_chunk(np.zeros(0, np.float32), last=True))
        return np.concatenate(self.blocks)
