"""`Content-Encoding`: which values change the bytes, and how to read these within limits."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from embedstream_core.fetch.errors import TryAgain, Unreadable

__all__ = ["decode_body"]

# IANA's codings that change the bytes, and other compressions. The rest leaves them as they are:
# `aws-chunked` stays on objects that an SDK uploaded in chunks, and upload tools write `base64`,
# character sets and media types there. The decoder decides whether the bytes are an image.
_CHANGED: Final = re.compile(
    r"\b(gzip|compress|deflate|br|brotli|zstd|dcb|dcz|aes128gcm|exi|bzip2|lzma|xz|lz4|snappy)\b"
)
# By the names of pyarrow's codecs.
_CODECS: Final = {"gzip": "gzip", "zstd": "zstd", "br": "brotli"}
_PART_BYTES = 64 * 1024


def decode_body(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Return the parts of a body, decompressed as its Content-Encoding says.

    A compressed body is decompressed 64 KiB at a time, whatever it expands to, so the caller can
    stop at its limit.

    Raises:
        ItemError: REFERENCE_UNREADABLE; there is no reader for the encoding, or while reading: the
            body is not what the encoding says.
        TransientError: while reading: the compressed body ends too early.
    """
    found = _CHANGED.findall(encoding.lower())
    if not found:
        return iter(chunks)
    if found == ["deflate"]:
        return _inflate(chunks)
    if len(found) > 1 or found[0] not in _CODECS:
        known = ", ".join(sorted([*_CODECS, "deflate"]))
        raise Unreadable(
            f"the answer is compressed or encrypted (Content-Encoding: {', '.join(found)[:40]}); "
            f"serve it plain, or with one of {known}"
        )
    return _decompress(chunks, found[0])


def _decompress(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    from pyarrow import CompressedInputStream, PythonFile

    body = _Body(chunks)
    with CompressedInputStream(PythonFile(body, mode="r"), _CODECS[encoding]) as stream:
        part = b"."
        while part:
            try:
                part = stream.read(_PART_BYTES)
            except OSError as error:
                if body.has_failed:
                    raise
                raise _build_error(encoding, is_cut=body.has_ended) from error
            yield part


class _Body(io.RawIOBase):
    """The chunks as a file. A reader gets at most one chunk at a time."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""
        self.has_ended = False
        self.has_failed = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            while not self._rest and not self.has_ended:
                chunk = next(self._chunks, None)
                self._rest, self.has_ended = chunk or b"", chunk is None
        except Exception:
            self.has_failed = True
            raise
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


def _inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress `deflate`: in zlib's format, as RFC 9110 asks, or raw, as some servers send it."""
    body = _Body(chunks)
    # The first chunk may have one byte.
    start = body.read(2)
    start += body.read(2 - len(start))
    is_zlib = start[:1] and start[0] & 0x0F == zlib.DEFLATED and int.from_bytes(start) % 31 == 0
    inflater = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    waiting = start
    while start and not inflater.eof:
        try:
            part = inflater.decompress(waiting, _PART_BYTES)
        except zlib.error as error:
            raise _build_error("deflate", is_cut=False) from error
        yield part
        waiting = inflater.unconsumed_tail
        # zlib may hold a part back, so it is asked until it has none.
        if part or waiting or inflater.eof:
            continue
        if not (waiting := body.read(_PART_BYTES)):
            raise _build_error("deflate", is_cut=True)
    if inflater.unused_data or body.read(1):
        raise _build_error("deflate", is_cut=False)


def _build_error(encoding: str, *, is_cut: bool) -> Exception:
    if is_cut:
        return TryAgain(f"the answer ends inside its compressed body ({encoding})")
    return Unreadable(f"the answer says Content-Encoding: {encoding}, and its body is not that")
