"""From a reference to its bytes. Every reference is denied unless the policy allows it.

A new scheme needs a class like `FileSource`, a row in `SCHEMES`, and one in the contract test.
"""

from __future__ import annotations

import functools
import logging
import random
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

from embedstream_core.errors import EmbedstreamError, SetupError, TransientError
from embedstream_core.fetch.errors import Busy, Denied, Internal, TryAgain
from embedstream_core.fetch.file import FileSource
from embedstream_core.fetch.http import HttpSource
from embedstream_core.fetch.limits import Clock, Deadline
from embedstream_core.fetch.outage import Outage
from embedstream_core.fetch.references import check_form
from embedstream_core.fetch.stores.azure import AzureSource
from embedstream_core.fetch.stores.gs import GsSource
from embedstream_core.fetch.stores.s3 import S3Source
from embedstream_core.settings import FetchPolicy

__all__ = ["SCHEMES", "Fetcher", "Source", "deny_references", "open_fetcher"]

_log = logging.getLogger(__name__)

_WAYS_OUT: Final = {
    "data": "; give the bytes, not a reference to them",
    "hdfs": "; workers have no Hadoop client: mount HDFS and write file:///folder/name, serve it "
    "by https:// (HttpFS), or copy the files to an object store",
    "dbfs": "; Databricks mounts it: write file:///dbfs/folder/name, or for a volume "
    "file:///Volumes/catalog/schema/volume/name",
    **dict.fromkeys(
        ("wasb", "wasbs", "azure", "adl"),
        "; write abfss://container@account.dfs.core.windows.net/key",
    ),
    "gcs": "; write gs://bucket/key",
    "": "; a reference begins with its scheme, so write a path as file:///folder/name",
}
# Not seeded, so that workers forked from one process do not all pause equally long.
_RANDOM = random.SystemRandom()


class Source(Protocol):
    """Fetches the references of a scheme; called by many threads at once."""

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """Try once, within the policy. Raise ItemError, TransientError or SystemicError."""

    def close(self) -> None:
        """Release everything."""


# The class that fetches a scheme, and what opens it: an empty list means closed.
_Row = tuple[Callable[[FetchPolicy], Source], Callable[[FetchPolicy], object]]
_S3: Final[_Row] = (S3Source, lambda policy: policy.find_buckets("s3"))
_AZURE: Final[_Row] = (AzureSource, lambda policy: policy.find_buckets("azure"))
SCHEMES: Final[Mapping[str, _Row]] = {
    "file": (FileSource, lambda policy: policy.folders),
    "http": (HttpSource, lambda policy: policy.hosts),
    "https": (HttpSource, lambda policy: policy.hosts),
    "s3": _S3,
    # Hadoop's names for S3.
    "s3a": _S3,
    "s3n": _S3,
    "gs": (GsSource, lambda policy: policy.find_buckets("gs")),
    # Hadoop's names for Azure's storage, with and without TLS; here both are read with TLS.
    "abfss": _AZURE,
    "abfs": _AZURE,
    "az": _AZURE,
}


@dataclass
class Fetcher:
    """Fetches references within a policy; safe to call from many threads at once."""

    policy: FetchPolicy
    sources: Mapping[str, Source]
    sleep: Callable[[float], None] = time.sleep
    clock: Clock = time.monotonic

    def __post_init__(self) -> None:
        self._outage = Outage(self.policy.outage_after)

    def fetch(self, uri: str) -> bytes:
        """Return the exact bytes that `uri` refers to, within `timeout_s` and `max_bytes`.

        No message and no log line holds the path, query or credentials of the reference.

        Raises:
            ItemError: with the reason's code, after retries where these could help. An exception
                that no code expected has the code `internal_error`.
            SystemicError: no reference of this scheme, or none at all, can be fetched now.
        """
        try:
            uri = _strip(uri)
            check_form(uri)
            scheme = uri.partition(":")[0].lower() if ":" in uri else ""
            if scheme not in self.sources:
                fault = "is not allowed" if scheme in SCHEMES else "is unknown"
                allowed = ", ".join(self.sources) or "none"
                raise Denied(
                    f"scheme {scheme[:20]!r} {fault}; known: {', '.join(SCHEMES)}; "
                    f"allowed: {allowed}{_WAYS_OUT.get(scheme, '')}"
                )
            with self._outage.watch():
                return self._fetch_with_retries(self.sources[scheme], uri)
        except (EmbedstreamError, MemoryError):
            raise
        except Exception as error:
            # The error's text may quote the reference: neither the row nor the log gets it.
            kind, frames = type(error).__name__, traceback.format_tb(error.__traceback__)
            _log.error("unexpected %s in one reference's fetch:\n%s", kind, "".join(frames))
            message = f"{kind}; its text may quote the reference and is left out"
            raise Internal(message) from None

    def close(self) -> None:
        """Close all sources."""
        for source in set(self.sources.values()):
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch_with_retries(self, source: Source, uri: str) -> bytes:
        deadline = Deadline(self.policy.timeout_s, self.clock)
        for attempt in range(self.policy.attempts - 1):
            pause_s = self.policy.backoff_s * 2**attempt * _RANDOM.uniform(0.5, 1.0)
            try:
                return source.fetch(uri, deadline)
            except TransientError as error:
                if isinstance(error, Busy):
                    pause_s = max(pause_s, error.retry_after_s)
                if pause_s < deadline.left_s:
                    self.sleep(pause_s)
                elif isinstance(error, Busy):
                    raise TryAgain(
                        f"{error.message}; there is no time for it within timeout_s, "
                        f"{self.policy.timeout_s:g} s"
                    ) from error
                else:
                    raise
        return source.fetch(uri, deadline)


def _strip(uri: str) -> str:
    """Remove the spaces and line ends around a web address, as browsers do.

    Addresses that were copied from pages and tables have them. The name of a file or of an object
    may end with one.
    """
    stripped = uri.strip(" \t\r\n")
    is_web = stripped.partition(":")[0].lower() in ("http", "https")
    return stripped if is_web else uri


def deny_references(uri: str) -> bytes:
    """Refuse a reference; in place of `Fetcher.fetch` where only bytes are embedded."""
    raise Denied("references are not fetched here: give the image's bytes")


def open_fetcher(policy: FetchPolicy, *, clock: Clock = time.monotonic) -> Fetcher:
    """Return a fetcher of what `policy` allows; close it after use.

    Raises:
        SetupError: a scheme is unknown, or an allowed folder does not exist.
        MissingExtra: a bucket is allowed and its store's library is not installed.
    """
    if unknown := sorted(set(policy.schemes) - set(SCHEMES)):
        known = ", ".join(SCHEMES)
        raise SetupError(f"unknown scheme {unknown[0]!r} in the fetch policy; known: {known}")
    # The schemes of one store share its source.
    open_once = functools.cache(lambda open_source: open_source(policy))
    sources = {
        name: open_once(open_source)
        for name, (open_source, find_allowed) in SCHEMES.items()
        if name in policy.schemes and find_allowed(policy)
    }
    return Fetcher(policy, sources, clock=clock)
