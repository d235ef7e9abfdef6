"""Every scheme, and the fetcher itself: form of references, retries, the table of schemes."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from embedstream_core.errors import (
    Code,
    ItemError,
    MissingExtra,
    SetupError,
    Stage,
    SystemicError,
    TransientError,
)
from embedstream_core.fetch import errors
from embedstream_core.fetch.fetcher import SCHEMES, Fetcher, open_fetcher
from embedstream_core.fetch.limits import Deadline
from embedstream_core.settings import FetchPolicy
from fetch_places import MAX_BYTES, Place, Site, Visit
from peak import Peak
from store_places import StorePlace


@pytest.fixture(params=["file", "http", "s3", "gs", "azure"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def code_of(fetcher: Fetcher, uri: str) -> Code:
    with pytest.raises(ItemError) as caught:
        fetcher.fetch(uri)
    assert caught.value.stage is Stage.FETCH
    return caught.value.code


class TestEveryScheme:
    @pytest.mark.parametrize("size", [0, 1, MAX_BYTES])
    def test_returns_the_exact_bytes(self, place: Place, size: int) -> None:
        content = bytes(number % 256 for number in range(size))
        uri = place.put("picture one.jpg", content)
        with open_fetcher(place.policy) as fetcher:
            assert fetcher.fetch(uri) == content

    def test_answers_many_threads_at_once(self, place: Place) -> None:
        contents = [str(number).encode() for number in range(40)]
        uris = [place.put(f"{number}.jpg", content) for number, content in enumerate(contents)]
        with open_fetcher(place.policy) as fetcher, ThreadPoolExecutor(16) as threads:
            assert list(threads.map(fetcher.fetch, uris)) == contents

    def test_denies_content_outside_the_policy_without_a_connection(self, place: Place) -> None:
        uri = place.outside()
        with open_fetcher(place.policy) as fetcher:
            assert code_of(fetcher, uri) is Code.REFERENCE_DENIED
        assert place.connections() == 0

    def test_an_empty_policy_allows_nothing(self, place: Place) -> None:
        uri = place.put("picture", b"bytes")
        with open_fetcher(FetchPolicy()) as fetcher:
            assert code_of(fetcher, uri) is Code.REFERENCE_DENIED
        assert place.connections() == 0

    def test_a_scheme_that_is_not_listed_is_closed(self, place: Place) -> None:
        uri = place.put("picture", b"bytes")
        with open_fetcher(replace(place.policy, schemes=())) as fetcher:
            assert code_of(fetcher, uri) is Code.REFERENCE_DENIED
        assert place.connections() == 0

    def test_reports_a_missing_item(self, place: Place) -> None:
        with open_fetcher(place.policy) as fetcher:
            assert code_of(fetcher, place.missing()) is Code.REFERENCE_NOT_FOUND

    def test_refuses_one_byte_too_many(self, place: Place) -> None:
        uri = place.put("large", bytes(MAX_BYTES + 1))
        with open_fetcher(place.policy) as fetcher:
            assert code_of(fetcher, uri) is Code.REFERENCE_TOO_LARGE

    def test_ends_in_time(self, place: Place) -> None:
        fetcher, uri = place.slow()
        started = time.monotonic()
        with fetcher:
            assert code_of(fetcher, uri) is Code.REFERENCE_TIMEOUT
        assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("scheme", ["http", "s3", "gs", "azure"])
def test_connections_per_host_bounds_the_fetches_at_once(
    request: pytest.FixtureRequest, site: Site, scheme: str
) -> None:
    place: Place = request.getfixturevalue(f"{scheme}_place")
    peak = Peak()

    def slow(visit: Visit) -> None:
        with peak.enter():
            time.sleep(0.02)
        visit.answer(200, b"bytes")

    if isinstance(place, StorePlace):
        path, uri = place.request.format("slow"), place.refer("slow")
    else:
        path, uri = "/slow", f"{site.url}/slow"
    site.pages[path] = slow
    policy = replace(place.policy, connections_per_host=3)
    with open_fetcher(policy) as fetcher, ThreadPoolExecutor(12) as threads:
        assert set(threads.map(fetcher.fetch, [uri] * 30)) == {b"bytes"}
    assert peak.most == 3


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:hunter2@images.test/a.jpg",
        "https://hunter2@images.test/a.jpg",
        "https://user:hunter2@images.test\\@other.test/a.jpg",
        "HTTPS:hunter2@images.test/a.jpg",
        "hunter2:x@images.test/a.jpg",
        "//user:hunter2@images.test/a.jpg",
        "file://user:hunter2@localhost/a.jpg",
        "https:/user:hunter2@images.test/a.jpg",
        "https:///user:hunter2@images.test/a.jpg",
    ],
)
def test_credentials_are_denied_and_not_quoted(uri: str, tmp_path: Path) -> None:
    policy = FetchPolicy(hosts=("images.test",), folders=(tmp_path,))
    with open_fetcher(policy) as fetcher, pytest.raises(ItemError) as caught:
        fetcher.fetch(uri)
    assert caught.value.code is Code.REFERENCE_DENIED
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "picture.jpg",
        "/etc/passwd",
        "https:",
        "https://",
        "https://[images.test/",
        "https://images.test:http/",
        "https://images.test:99999/",
        "https://images.test/\r\nX: y",
        "\u00a0https://images.test/",
        "https:// images.test/",
        "https://images.test/\ud800",
        "https://b\u00fccher.test/",
        "gopher://images.test/",
        "https://images.test/" + "a" * 20_000,
        "https://[2024]/a.jpg",
        "https://[::1%25eth0]/",
        "https://[v1.images]/",
        "https://images.test\u2100:443/",
        "https://images\u2100.test/",
        "https://images..test/",
        "https://" + "a" * 64 + ".images.test/",
    ],
)
def test_malformed_references_are_denied(uri: str) -> None:
    with open_fetcher(FetchPolicy(hosts=("images.test",))) as fetcher:
        assert code_of(fetcher, uri) is Code.REFERENCE_DENIED


def test_the_message_lists_the_known_and_the_allowed_schemes() -> None:
    with open_fetcher(FetchPolicy(hosts=("images.test",))) as fetcher:
        with pytest.raises(ItemError, match=r"'ftp' is unknown; known: .*s3, .*; allowed: https$"):
            fetcher.fetch("ftp://images.test/a.jpg")
        for scheme in ("s3", "s3a", "GS", "abfss"):
            with pytest.raises(ItemError, match=rf"'{scheme.lower()}' is not allowed"):
                fetcher.fetch(f"{scheme}://bucket/a.jpg")


@pytest.mark.parametrize(
    ("uri", "way_out"),
    [
        ("data:image/png;base64,YQ==", "give the bytes"),
        ("/folder/name", "write a path as file:///folder/name"),
        ("hdfs://namenode:8020/a.jpg", "mount HDFS and write file:///folder/name"),
        ("dbfs:/folder/a.jpg", "write file:///dbfs/folder/name, or for a volume file:///Volumes/"),
        ("wasbs://images/a.jpg", "write abfss://container@account.dfs.core.windows.net/key"),
        ("gcs://bucket/a.jpg", "write gs://bucket/key"),
    ],
)
def test_what_is_no_scheme_here_has_a_way_out(uri: str, way_out: str) -> None:
    with (
        open_fetcher(FetchPolicy(hosts=("images.test",))) as fetcher,
        pytest.raises(ItemError, match=rf"is unknown; .*{re.escape(way_out)}") as caught,
    ):
        fetcher.fetch(uri)
    assert caught.value.code is Code.REFERENCE_DENIED


class Flaky:
    """A source that fails so many times, then answers."""

    def __init__(self, failures: int, error: Callable[[str], Exception]) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error("the server answered 503")
        return b"bytes"

    def close(self) -> None:
        pass


def flaky_fetcher(source: Flaky, naps: list[float], timeout_s: float = 60) -> Fetcher:
    policy = FetchPolicy(attempts=3, backoff_s=1, timeout_s=timeout_s)
    return Fetcher(policy, {"https": source}, sleep=naps.append)


class TestRetries:
    def test_pauses_longer_each_time(self) -> None:
        naps: list[float] = []
        source = Flaky(2, errors.TryAgain)
        assert flaky_fetcher(source, naps).fetch("https://a/") == b"bytes"
        assert len(naps) == 2
        assert 0.5 <= naps[0] <= 1 <= naps[1] <= 2

    def test_gives_up_after_the_last_attempt(self) -> None:
        source = Flaky(9, errors.TryAgain)
        with pytest.raises(TransientError) as caught:
            flaky_fetcher(source, []).fetch("https://a/")
        assert (source.calls, caught.value.code) == (3, Code.REFERENCE_UNREADABLE)

    def test_does_not_repeat_a_final_error(self) -> None:
        source = Flaky(9, errors.NotFound)
        with pytest.raises(ItemError):
            flaky_fetcher(source, []).fetch("https://a/")
        assert source.calls == 1

    def test_does_not_pause_beyond_the_deadline(self) -> None:
        naps: list[float] = []
        with pytest.raises(TransientError):
            flaky_fetcher(Flaky(9, errors.TryAgain), naps, timeout_s=0.4).fetch("https://a/")
        assert naps == []


class Busy:
    """A source that is busy until a time on the clock, and says for how many seconds."""

    def __init__(self, clock: SteppedClock, until: float, retry_after_s: float) -> None:
        self.clock, self.until, self.retry_after_s = clock, until, retry_after_s
        self.calls: list[float] = []

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        self.calls.append(self.clock.now)
        if self.clock.now < self.until:
            raise errors.Busy("the server answered 429", self.retry_after_s)
        return b"bytes"

    def close(self) -> None:
        pass


class SteppedClock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class TestServersThatAskForAPause:
    @pytest.fixture
    def clock(self) -> SteppedClock:
        return SteppedClock()

    def fetcher(self, source: Busy, **changes: float | None) -> Fetcher:
        limits = {"attempts": 3, "backoff_s": 0.1, "timeout_s": 10, **changes}
        policy = FetchPolicy(**limits)  # type: ignore[arg-type]
        clock = source.clock
        return Fetcher(policy, {"https": source}, sleep=clock.sleep, clock=clock)

    def test_get_it(self, clock: SteppedClock) -> None:
        source = Busy(clock, until=4, retry_after_s=2)
        assert self.fetcher(source).fetch("https://a/") == b"bytes"
        assert source.calls == [0, 2, 4]

    def test_do_not_shorten_the_pauses(self, clock: SteppedClock) -> None:
        source = Busy(clock, until=99, retry_after_s=0)
        with pytest.raises(TransientError):
            self.fetcher(source, backoff_s=1).fetch("https://a/")
        assert len(source.calls) == 3
        assert source.calls[1] >= 0.5
        assert source.calls[2] >= 1.5

    @pytest.mark.parametrize("retry_after_s", [10, 3600])
    def test_that_does_not_fit_fail_at_once(
        self, clock: SteppedClock, retry_after_s: float
    ) -> None:
        source = Busy(clock, until=5, retry_after_s=retry_after_s)
        said = rf"429 and asks for a pause of {retry_after_s} s; .* no time .* timeout_s, 10 s"
        with pytest.raises(TransientError, match=said) as caught:
            self.fetcher(source).fetch("https://a/")
        assert caught.value.code is Code.REFERENCE_UNREADABLE
        assert source.calls == [0]

    def test_have_no_more_than_the_time_that_is_left(self, clock: SteppedClock) -> None:
        source = Busy(clock, until=99, retry_after_s=6)
        with pytest.raises(TransientError, match="no time"):
            self.fetcher(source).fetch("https://a/")
        assert source.calls == [0, 6]

    def test_are_an_outage_when_all_references_meet_them(self, clock: SteppedClock) -> None:
        source = Busy(clock, until=9999, retry_after_s=3600)
        fetcher = self.fetcher(source, outage_after=2)
        assert code_of(fetcher, "https://a/") is Code.REFERENCE_UNREADABLE
        with pytest.raises(SystemicError, match=r"outage: 2 .* a pause of 3600 s"):
            fetcher.fetch("https://a/")


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError])
def test_an_unexpected_error_is_internal_and_is_not_quoted(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """It is a bug of ours or of a library, and its text may hold the whole reference."""
    uri = "https://a/?sig=canary"
    source = Flaky(1, lambda _: kind(f"cannot use {uri}"))
    with pytest.raises(ItemError, match=f"^{kind.__name__}; its text may quote") as caught:
        flaky_fetcher(source, []).fetch(uri)
    assert (caught.value.code, caught.value.stage) == (Code.INTERNAL_ERROR, Stage.FETCH)
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    # Not `caplog.text`: where Spark was imported before, it is JSON.
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert f"unexpected {kind.__name__}" in logged
    assert "in fetch\n" in logged
    assert "canary" not in caplog.text


class TestPolicy:
    def test_rejects_an_unknown_scheme(self) -> None:
        with pytest.raises(SetupError, match=r"'ftp'.*known: file, http, https, s3"):
            open_fetcher(FetchPolicy(schemes=("ftp",)))

    def test_names_the_extra_when_a_bucket_is_allowed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "boto3.session", None)
        with pytest.raises(MissingExtra, match=r"embedstream\[s3\]"):
            open_fetcher(FetchPolicy(buckets=("pictures",)))
        open_fetcher(FetchPolicy()).close()

    @pytest.mark.parametrize("host", ["*", "*.", "https://a.test", "a.test/x", "a:b", "", "a b"])
    def test_rejects_an_invalid_host(self, host: str) -> None:
        with pytest.raises(SetupError, match="cannot be allowed"):
            FetchPolicy(hosts=(host,))

    @pytest.mark.parametrize(
        "values",
        [
            {"max_bytes": 0},
            {"attempts": 0},
            {"outage_after": 0},
            {"timeout_s": 0},
            {"timeout_s": float("nan")},
            {"max_redirects": -1},
            {"networks": ("10.0.0.1/8",)},
            {"folders": (Path("relative"),)},
            {"s3_endpoint": "storage.example.com"},
            {"gs_endpoint": "storage.example.com"},
            {"azure_endpoint": "https://user:hunter2@storage.example.com"},
        ],
    )
    def test_rejects_invalid_values(self, values: dict[str, object]) -> None:
        with pytest.raises(SetupError):
            FetchPolicy(**values)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("bucket", "expected"),
        [
            ("pictures", ("s3", "pictures", "")),
            ("a.b-c_D", ("s3", "a.b-c_D", "")),
            ("s3://pictures/", ("s3", "pictures", "")),
            ("gs://pictures", ("gs", "pictures", "")),
            ("abfss://c-1@acc.dfs.core.windows.net", ("azure", "c-1", "acc.blob.core.windows.net")),
            (
                "az://$web@acc.blob.core.windows.net/",
                ("azure", "$web", "acc.blob.core.windows.net"),
            ),
            ("abfss://ws@onelake.dfs.fabric.microsoft.com", None),
        ],
    )
    def test_reads_a_bucket_of_each_store(
        self, bucket: str, expected: tuple[str, str, str] | None
    ) -> None:
        (rule,) = FetchPolicy(buckets=(bucket,)).bucket_rules
        onelake = ("azure", "ws", "onelake.blob.fabric.microsoft.com")
        assert (rule.store, rule.name, rule.host) == (expected or onelake)

    @pytest.mark.parametrize(
        "bucket",
        [
            *[
                "",
                "a/b",
                "s3a://a",
                "gs://",
                "gs://a/b",
                "az://pictures",
                "abfss://pictures",
                "a b",
            ],
            # Names of no bucket, which would open nothing.
            *["*", "gs://pictures-*", "gs:pictures", "a?b", "a%2fb"],
            *[
                "abfss://c@acc.example.com",
                "abfss://c:x@acc.dfs.core.windows.net",
                "c@acc",
                "https://a",
            ],
            *["abfss://c@acc.dfs.core.windows.net/key", "abfss://c@a.b.dfs.core.windows.net"],
        ],
    )
    def test_rejects_an_invalid_bucket(self, bucket: str) -> None:
        with pytest.raises(SetupError, match="cannot be allowed: write 'name'"):
            FetchPolicy(buckets=(bucket,))

    def test_a_missing_folder_stops_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match="missing"):
            open_fetcher(FetchPolicy(folders=(tmp_path / "missing",)))

    def test_an_empty_policy_opens_no_row(self) -> None:
        assert not any(find_allowed(FetchPolicy()) for _, find_allowed in SCHEMES.values())

    def test_the_schemes_of_one_store_share_its_source(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
        buckets = ("pictures", "abfss://pictures@account.dfs.core.windows.net")
        with open_fetcher(FetchPolicy(buckets=buckets)) as fetcher:
            assert list(fetcher.sources) == ["s3", "s3a", "s3n", "abfss", "abfs", "az"]
            assert len(set(fetcher.sources.values())) == 2
