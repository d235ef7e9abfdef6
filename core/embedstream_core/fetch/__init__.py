"""References to bytes: one file a scheme, one row of `SCHEMES` a scheme, denied by default.

A new scheme is a class like `FileSource`, a row here, and a row in the contract test.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from embedstream_core.errors import SetupError, TransientError
from embedstream_core.fetch import verdicts
from embedstream_core.fetch.file import FileSource
from embedstream_core.fetch.http import HttpSource
from embedstream_core.fetch.limits import Clock, Deadline
from embedstream_core.fetch.outage import Outage
from embedstream_core.fetch.references import check_form
from embedstream_core.fetch.s3 import S3Source
from embedstream_core.settings import FetchPolicy

__all__ = [
    "SCHEMES",
    "FetchPolicy",
    "Fetcher",
    "Scheme",
    "Source",
    "deny_references",
    "open_fetcher",
]

_S3 = "write s3://bucket/key, or allow this scheme by name in references.schemes"
_WAYS_OUT: Final = {
    "s3a": _S3,
    "s3n": _S3,
    "data": "give the bytes, not a reference to them",
    "": "a reference begins with its scheme, so write a path as file:///folder/name",
}
# Not seeded: workers forked from one process would all pause alike. Nothing secret comes of it.
_RANDOM = random.SystemRandom()


class Source(Protocol):
    """What fetches the references of a scheme; called by many threads at once."""

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """One attempt, within the policy. Raises ItemError, TransientError or SystemicError."""

    def close(self) -> None:
        """Lets go of all it holds."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a scheme is opened, and the list of the policy that opens it: empty means closed."""

    open: Callable[[FetchPolicy], Source]
    allowed: Callable[[FetchPolicy], tuple[object, ...]]


SCHEMES: Final[Mapping[str, Scheme]] = {
    "file": Scheme(open=FileSource, allowed=lambda policy: policy.folders),
    "http": Scheme(open=HttpSource, allowed=lambda policy: policy.hosts),
    "https": Scheme(open=HttpSource, allowed=lambda policy: policy.hosts),
    "s3": Scheme(open=S3Source, allowed=lambda policy: policy.buckets),
    # Hadoop's names for the same.
    "s3a": Scheme(open=S3Source, allowed=lambda policy: policy.buckets),
    "s3n": Scheme(open=S3Source, allowed=lambda policy: policy.buckets),
}


class Fetcher:
    """Fetches references within a policy; safe to call from many threads at once."""

    def __init__(
        self,
        policy: FetchPolicy,
        sources: Mapping[str, Source],
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        self._policy = policy
        self._sources = sources
        self._outage = Outage(policy.outage_after)
        self._sleep = sleep
        self._clock = clock

    def fetch(self, uri: str) -> bytes:
        """The exact bytes that `uri` refers to, within `timeout_s` and `max_bytes`.

        Raises ItemError with the reason's code, after retries where these could help;
        SystemicError when no reference of this scheme can be fetched now, or none at all. No
        message holds the path, query or credentials of the reference. No text of a reference
        raises anything else.
        """
        source = self._source_of(uri)
        with self._outage.watched():
            try:
                return self._fetch(source, uri)
            except (OSError, ValueError) as error:
                # A library's own words for a text that it does not take, which they may quote.
                raise verdicts.unreadable(
                    f"the reference cannot be used: {type(error).__name__}"
                ) from error

    def close(self) -> None:
        """Closes what is open; nothing can be fetched after."""
        for source in self._sources.values():
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fetch(self, source: Source, uri: str) -> bytes:
        deadline = Deadline(self._policy.timeout_s, self._clock)
        for pause_s in self._pauses_s():
            try:
                return source.fetch(uri, deadline)
            except verdicts.Busy as error:
                pause_s = max(pause_s, error.retry_after_s)
                if pause_s >= deadline.left_s():
                    raise verdicts.try_again(
                        f"{error.message}; there is no time for it within timeout_s, "
                        f"{self._policy.timeout_s:g} s"
                    ) from error
            except TransientError:
                if pause_s >= deadline.left_s():
                    raise
            self._sleep(pause_s)
        return source.fetch(uri, deadline)

    def _source_of(self, uri: str) -> Source:
        check_form(uri)
        scheme = uri.partition(":")[0].lower() if ":" in uri else ""
        if scheme not in self._sources:
            fault = "is not allowed" if scheme in SCHEMES else "is unknown"
            way_out = f"; {_WAYS_OUT[scheme]}" if scheme in _WAYS_OUT else ""
            raise verdicts.denied(
                f"scheme {scheme[:20]!r} {fault}; known: {verdicts.listed(SCHEMES)}; "
                f"allowed: {verdicts.listed(self._sources)}{way_out}"
            )
        return self._sources[scheme]

    def _pauses_s(self) -> Iterator[float]:
        for attempt in range(self._policy.attempts - 1):
            yield self._policy.backoff_s * 2**attempt * _RANDOM.uniform(0.5, 1.0)


def deny_references(uri: str) -> bytes:
    """Stand for a fetcher where only bytes are embedded."""
    raise verdicts.denied("only image bytes are embedded here, and no references fetched")


def open_fetcher(
    policy: FetchPolicy,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Clock = time.monotonic,
) -> Fetcher:
    """A fetcher of what `policy` allows; close it after use.

    Raises SetupError for an unknown scheme or an allowed folder that is not there, MissingExtra
    when a bucket is allowed and boto3 is not installed.
    """
    unknown = sorted(set(policy.schemes) - set(SCHEMES))
    if unknown:
        known = verdicts.listed(SCHEMES)
        raise SetupError(f"unknown scheme {unknown[0]!r} in the fetch policy; known: {known}")
    sources = {
        name: scheme.open(policy)
        for name, scheme in SCHEMES.items()
        if name in policy.schemes and scheme.allowed(policy)
    }
    return Fetcher(policy, sources, sleep=sleep, clock=clock)
