"""References that fail one by one, and an outage, which no reference causes."""

from __future__ import annotations

import socket
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from embedstream_core.errors import Code, ItemError, SystemicError, TransientError
from embedstream_core.fetch.fetcher import Fetcher, open_fetcher
from embedstream_core.settings import FetchPolicy
from fetch_places import Place, Site, Visit


def policy_of(site: Site, **changes: int | None) -> FetchPolicy:
    return replace(site.policy, **{"attempts": 1, "outage_after": 3, **changes})  # type: ignore[arg-type]


def codes(fetcher: Fetcher, *uris: str) -> list[Code | None]:
    """Return the code of each reference, in order; None for one that is fetched."""
    return [_code(fetcher, uri) for uri in uris]


def _code(fetcher: Fetcher, uri: str) -> Code | None:
    try:
        fetcher.fetch(uri)
    except ItemError as error:
        return error.code
    return None


def broken(site: Site, status: int = 503) -> str:
    site.pages["/broken"] = lambda visit: visit.answer(status)
    return f"{site.url}/broken"


def test_the_third_failure_in_a_row_is_an_outage(site: Site) -> None:
    uri = broken(site)
    with open_fetcher(policy_of(site)) as fetcher:
        assert codes(fetcher, uri, uri) == [Code.REFERENCE_UNREADABLE] * 2
        for count in (3, 4):
            with pytest.raises(SystemicError, match=rf"{count} references.* answered 503"):
                fetcher.fetch(uri)


@pytest.mark.parametrize("answer", [200, 404, 403])
def test_any_response_resets_the_counter(site: Site, answer: int) -> None:
    uri = broken(site)
    site.pages["/answer"] = lambda visit: visit.answer(answer, b"bytes")
    with open_fetcher(policy_of(site)) as fetcher:
        for _ in range(3):
            assert None not in codes(fetcher, uri, uri)
            codes(fetcher, f"{site.url}/answer")


def test_a_denied_reference_does_not_reset_the_counter(site: Site) -> None:
    uri, denied = broken(site), "http://elsewhere.test/"
    with open_fetcher(policy_of(site)) as fetcher:
        assert codes(fetcher, uri, denied, uri)[1] is Code.REFERENCE_DENIED
        with pytest.raises(SystemicError):
            fetcher.fetch(uri)


def test_denied_references_are_never_an_outage(site: Site) -> None:
    with open_fetcher(policy_of(site)) as fetcher:
        uris = ["http://elsewhere.test/"] * 5
        assert codes(fetcher, *uris) == [Code.REFERENCE_DENIED] * 5


def test_retries_of_one_reference_count_once(site: Site) -> None:
    uri = broken(site)
    with open_fetcher(policy_of(site, attempts=3)) as fetcher:
        assert codes(fetcher, uri, uri) == [Code.REFERENCE_UNREADABLE] * 2
    assert len(site.requests) == 6


def test_without_a_limit_there_is_no_outage(site: Site) -> None:
    uri = broken(site)
    with open_fetcher(policy_of(site, outage_after=None)) as fetcher:
        assert codes(fetcher, *[uri] * 30) == [Code.REFERENCE_UNREADABLE] * 30


def test_threads_share_the_counter(site: Site) -> None:
    uri = broken(site)

    def outcome(fetcher: Fetcher) -> type[Exception]:
        with pytest.raises((SystemicError, TransientError)) as caught:
            fetcher.fetch(uri)
        return caught.type

    with open_fetcher(policy_of(site, outage_after=20)) as fetcher, ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: outcome(fetcher), range(40)))
    assert outcomes.count(TransientError) == 19


def test_a_port_where_nobody_listens_is_an_outage(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    policy = replace(policy_of(site), hosts=(f"127.0.0.1:{port}",))
    with open_fetcher(policy) as fetcher:
        codes(fetcher, *[f"http://127.0.0.1:{port}/"] * 2)
        with pytest.raises(SystemicError, match="Connection refused"):
            fetcher.fetch(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("scheme", ["http", "s3", "gs", "azure"])
def test_the_traceback_of_an_outage_holds_no_reference(
    request: pytest.FixtureRequest, site: Site, scheme: str
) -> None:
    """A worker's traceback, with all causes, goes into Spark's log."""
    place: Place = request.getfixturevalue(f"{scheme}_place")
    site.otherwise = Visit.stall
    uri = place.missing().replace("missing", "canary?sig=canary")
    policy = replace(place.policy, attempts=1, outage_after=1, timeout_s=0.3)
    with open_fetcher(policy) as fetcher, pytest.raises(SystemicError) as caught:
        fetcher.fetch(uri)
    assert "canary" not in "".join(traceback.format_exception(caught.value))
