"""No text of a reference or a redirect raises anything but an ItemError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedstream_core.errors import Code, ItemError
from embedstream_core.fetch.fetcher import SCHEMES, Fetcher, open_fetcher
from embedstream_core.fetch.http import HttpSource
from embedstream_core.settings import FetchPolicy
from fetch_places import Site
from object_storage import KEYS

HERE = Path(__file__).parent
CODES = {
    Code.REFERENCE_DENIED,
    Code.REFERENCE_NOT_FOUND,
    Code.REFERENCE_UNREADABLE,
    Code.REFERENCE_TOO_LARGE,
}
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# Pieces that parsers of URLs stumble over, to be put together at random.
PIECES = st.sampled_from(
    [
        *[":", "/", "//", "///", "\\", "?", "#", "@", "[", "]", "%", "..", ".", "~", "+", "&", "="],
        *[
            ";",
            ",",
            "'",
            '"',
            "<",
            ">",
            "|",
            "^",
            "`",
            "{",
            "}",
            " ",
            "%00",
            "%zz",
            "%ff",
            "%2e%2e",
        ],
        *["[::1]", "[::1%25eth0]", "[v1.a]", "[2024]", "[::ffff:7f00:1]", "0x7f.1", "127.0.0.1"],
        *["%2f", ":0", ":80", ":99999", ":-1", ":\u0661", ":PORT", "localhost", "a.images.test"],
        *[
            ".images.test",
            "images.test.",
            "xn--",
            "xn--a",
            "pictures",
            "key",
            "a",
            "\u00fc",
            "\u2100",
        ],
        *["\uff0f", "\u3002", "\U0001f600", "a" * 64, "a" * 300, "a/" * 3_000],
    ]
)
# Control characters and half surrogates are refused before anything else looks at a reference.
PRINTABLE = st.characters(exclude_categories=("Cc", "Cs"))
TAILS = st.lists(PIECES | st.text(PRINTABLE, max_size=4), max_size=8).map("".join)
STARTS = st.sampled_from(
    [
        *["", "/", "//", "//", "//[", "///", "//localhost/", "//pictures/", "//a.images.test/"],
        *["//pictures@a.dfs.images.test/", "//pictures@", "//a.dfs.images.test/"],
        *["//a.images.test:PORT/", "//a.images.test:PORT", "//[::1]:PORT/", f"//{HERE}/", "//a."],
    ]
)
SCHEMES_AND_MORE = st.sampled_from([*SCHEMES, *SCHEMES, *map(str.upper, SCHEMES), "data", ""])
WITH_SCHEME = st.builds("{}:{}{}".format, SCHEMES_AND_MORE, STARTS, TAILS)
REFERENCES = WITH_SCHEME | WITH_SCHEME | WITH_SCHEME | st.text(max_size=30)


@contextmanager
def open_to_all(site: Site) -> Iterator[Fetcher]:
    """A fetcher with the widest policy; every host is the site."""
    policy = FetchPolicy(
        schemes=tuple(SCHEMES),
        folders=(HERE,),
        hosts=(
            *("*.images.test", "localhost", "127.0.0.1", "[::1]"),
            *(f"{host}:{site.port}" for host in ("*.images.test", "127.0.0.1", "[::1]")),
        ),
        networks=("127.0.0.0/8", "::/0", "0.0.0.0/0"),
        buckets=(
            *("pictures", "a", "localhost", "127.0.0.1"),
            *("gs://pictures", "gs://a", "abfss://pictures@a.dfs.images.test"),
        ),
        s3_endpoint=site.url,
        gs_endpoint=site.url,
        azure_endpoint=site.url,
        s3_region="us-east-1",
        max_redirects=1,
        max_bytes=100_000,
        timeout_s=5,
        attempts=1,
        outage_after=None,
    )

    def resolver(host: str, port: int) -> list[str]:
        # As getaddrinfo does with every name.
        host.encode("idna")
        return ["127.0.0.1"]

    schemes = tuple(name for name in SCHEMES if not name.startswith("http"))
    with open_fetcher(replace(policy, schemes=schemes)) as others:
        web = HttpSource(policy, resolver=resolver)
        sources = {**others.sources, "http": web, "https": web}
        with Fetcher(policy, sources) as fetcher:
            yield fetcher


@pytest.fixture
def fetcher(site: Site, google_key: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetcher]:
    keys = {**KEYS, "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with open_to_all(site) as fetcher:
        yield fetcher


def failure_of(fetcher: Fetcher, uri: str) -> ItemError | None:
    try:
        assert isinstance(fetcher.fetch(uri), bytes)
    except ItemError as error:
        return error
    return None


def expect_bytes_or_a_failure(fetcher: Fetcher, uri: str) -> None:
    failure = failure_of(fetcher, uri)
    assert failure is None or failure.code in CODES


@shared
@given(uri=REFERENCES)
def test_as_a_reference(fetcher: Fetcher, site: Site, uri: str) -> None:
    expect_bytes_or_a_failure(fetcher, uri.replace("PORT", str(site.port)))


@shared
@given(location=REFERENCES | TAILS)
def test_as_the_target_of_a_redirect(fetcher: Fetcher, site: Site, location: str) -> None:
    location = location.replace("PORT", str(site.port))
    raw = location.encode("utf-8", "surrogatepass").replace(b"\r", b"").replace(b"\n", b"")
    head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + raw + b"\r\n\r\n"
    site.pages["/moved"] = lambda visit: visit.raw(head)
    expect_bytes_or_a_failure(fetcher, f"{site.url}/moved")
