"""Bodies that are compressed, damaged or too large, by what Content-Encoding says of them."""

from __future__ import annotations

import gzip
import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstream_core.errors import Code, ItemError, TransientError
from embedstream_core.fetch.limits import Deadline, read_within

MAX_BYTES = 1_000_000
# Half of it can be compressed.
CONTENT = random.Random(0).randbytes(150_000) + bytes(150_000)


def deflate_raw(content: bytes) -> bytes:
    return zlib.compress(content, wbits=-zlib.MAX_WBITS)


def compress_brotli(content: bytes) -> bytes:
    return bytes(pa.compress(content, "brotli", asbytes=True))


def compress_zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


COMPRESSED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", deflate_raw),
    "zstd": ("zstd", compress_zstd),
    "brotli": ("br", compress_brotli),
}


def read(chunks: Iterable[bytes], encoding: str, max_bytes: int = MAX_BYTES) -> bytes:
    return read_within(chunks, encoding=encoding, max_bytes=max_bytes, deadline=Deadline(60))


def cut(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


@pytest.fixture(params=COMPRESSED)
def case(request: pytest.FixtureRequest) -> tuple[str, Callable[[bytes], bytes]]:
    return COMPRESSED[request.param]


class TestCompressedBodies:
    @pytest.mark.parametrize("size", [7, 65_536, 10**9])
    @pytest.mark.parametrize("content", [b"", b"a", CONTENT], ids=["empty", "one", "large"])
    def test_are_decompressed(
        self, case: tuple[str, Callable[[bytes], bytes]], content: bytes, size: int
    ) -> None:
        encoding, compress = case
        assert read(cut(compress(content), size), encoding) == content

    def test_may_be_empty(self, case: tuple[str, Callable[[bytes], bytes]]) -> None:
        assert read([], case[0]) == b""
        assert read([b"", b""], case[0]) == b""

    def test_that_end_too_early_are_tried_again(
        self, case: tuple[str, Callable[[bytes], bytes]]
    ) -> None:
        encoding, compress = case
        body = compress(CONTENT)
        for length in (1, 2, 5, 1000, len(body) // 2, len(body) - 1):
            with pytest.raises(TransientError, match="ends inside its compressed body") as caught:
                read(cut(body[:length], 1000), encoding)
            assert caught.value.code is Code.REFERENCE_UNREADABLE

    def test_that_are_something_else_are_refused(
        self, case: tuple[str, Callable[[bytes], bytes]]
    ) -> None:
        encoding, compress = case
        # JPEG's first bytes, and what follows a whole body.
        for body in (b"\xff\xd8\xff\xe0" * 1000, compress(b"a") + b"\xff\xd8\xff\xe0" * 1000):
            with pytest.raises(ItemError, match=f"says Content-Encoding: {encoding}") as caught:
                read(itertools.chain([body], [b""]), encoding)
            assert caught.value.code is Code.REFERENCE_UNREADABLE

    def test_are_limited_by_what_they_expand_to(
        self, case: tuple[str, Callable[[bytes], bytes]]
    ) -> None:
        encoding, compress = case
        taken = 0

        def bomb() -> Iterator[bytes]:
            nonlocal taken
            for chunk in cut(compress(bytes(20_000_000)), 100):
                taken += len(chunk)
                yield chunk

        assert read([compress(bytes(MAX_BYTES))], encoding) == bytes(MAX_BYTES)
        with pytest.raises(ItemError) as caught:
            read(bomb(), encoding)
        assert caught.value.code is Code.REFERENCE_TOO_LARGE
        assert taken <= len(compress(bytes(MAX_BYTES * 4))) + 100

    @given(
        body=st.binary(max_size=300), encoding=st.sampled_from(["gzip", "deflate", "zstd", "br"])
    )
    def test_of_any_bytes_are_read_or_one_failure(self, body: bytes, encoding: str) -> None:
        failure = None
        try:
            read(cut(body, 11), encoding)
        except ItemError as error:
            failure = error.code
        assert failure in (None, Code.REFERENCE_UNREADABLE, Code.REFERENCE_TOO_LARGE)


def test_members_that_follow_each_other_are_one_body() -> None:
    """As RFC 1952 and RFC 8878 allow."""
    assert read([gzip.compress(b"a") + gzip.compress(b"b")], "gzip") == b"ab"
    assert read([compress_zstd(b"a") + compress_zstd(b"b")], "zstd") == b"ab"


@pytest.mark.parametrize(
    "member",
    [gzip.compress(b""), b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"],
    ids=["gzip", "zstd"],
)
def test_a_body_that_expands_to_nothing_ends_at_the_limit(member: bytes) -> None:
    encoding = "gzip" if member.startswith(b"\x1f") else "zstd"
    with pytest.raises(ItemError) as caught:
        read(itertools.repeat(member * 100), encoding)
    assert caught.value.code is Code.REFERENCE_TOO_LARGE


@pytest.mark.parametrize("kind", [OSError, KeyError, ConnectionResetError])
def test_an_error_of_the_source_passes(kind: type[Exception]) -> None:
    def chunks() -> Iterator[bytes]:
        yield gzip.compress(b"a")[:5]
        raise kind("lost")

    with pytest.raises(kind, match="lost"):
        read(chunks(), "gzip")


@pytest.mark.parametrize(
    "value",
    [
        *["", " ", ",", "identity", "Identity", "none", "NULL", "aws-chunked", "AWS-Chunked"],
        *["UTF-8", "utf8", "binary", "us-ascii", "image/jpeg", "application/octet-stream"],
        *["base64", "jpeg", "cp1252", "text/plain; charset=gbk", "*", "undefined", "identity; q=1"],
        *["aws-chunked,", "aws-chunked, UTF-8", "identity,aws-chunked", " utf-8 , identity "],
    ],
)
def test_an_encoding_that_changes_no_byte_is_accepted(value: str) -> None:
    assert read([b"by", b"tes"], value) == b"bytes"


@pytest.mark.parametrize(
    "value", ["x-gzip", '"gzip"', "GZIP", "aws-chunked,gzip", "gzip, identity"]
)
def test_one_compression_among_others_is_read(value: str) -> None:
    assert read([gzip.compress(b"bytes")], value) == b"bytes"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        *[(name, name) for name in ("compress", "aes128gcm", "dcz", "xz", "exi")],
        ("gzip gzip", "gzip, gzip"),
        ("gzip, br", "gzip, br"),
        ("identity, lzma", "lzma"),
    ],
)
def test_what_cannot_be_read_is_refused(value: str, named: str) -> None:
    with pytest.raises(
        ItemError, match=rf"encrypted \(Content-Encoding: {named}\); .* br, deflate, gzip, zstd"
    ) as caught:
        read([b"bytes"], value)
    assert caught.value.code is Code.REFERENCE_UNREADABLE
