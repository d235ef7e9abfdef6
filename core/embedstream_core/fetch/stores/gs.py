"""`gs://bucket/key`: objects in the allowed buckets of Google Cloud Storage, keys as written."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from ssl import SSLContext
from typing import Any
from urllib.parse import quote

from embedstream_core.errors import SystemicError
from embedstream_core.extras import require_extra
from embedstream_core.fetch.errors import Denied
from embedstream_core.fetch.limits import Deadline
from embedstream_core.fetch.stores.client import StoreClient
from embedstream_core.fetch.stores.names import split_name
from embedstream_core.settings import FetchPolicy

__all__ = ["GsSource"]

_ENDPOINT = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_SERVER = "Google Cloud Storage"


class GsSource:
    """Reads objects over the JSON API, with the credentials that google-auth finds by itself.

    `fetch` raises SystemicError for credentials that are missing, wrong or expired, because every
    object would fail.

    Raises:
        MissingExtra: google-auth is not installed.
    """

    def __init__(self, policy: FetchPolicy, *, tls: SSLContext | None = None) -> None:
        with require_extra("gs", feature="a gs:// reference"):
            from google.auth.transport.requests import Request
        self._buckets = [rule.name for rule in policy.find_buckets("gs")]
        self._client = StoreClient(policy, server=_SERVER, systemic={401}, tls=tls)
        self._endpoint = (policy.gs_endpoint or _ENDPOINT).rstrip("/")
        self._credentials: Any = None
        self._request = Request()
        # One thread: the references that wait for a token all wait for the same one.
        self._logins = ThreadPoolExecutor(1, thread_name_prefix="gs-login")

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """Return the bytes of the object."""
        bucket, key = split_name(uri, form="gs://bucket/key")
        if bucket not in self._buckets:
            allowed = ", ".join(self._buckets)
            raise Denied(f"bucket {bucket[:63]!r} is not allowed in gs; allowed: {allowed}")
        headers = deadline.wait_for(self._logins.submit(self._log_in))
        url = f"{self._endpoint}/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}?alt=media"
        return self._client.get(url, headers, deadline)

    def close(self) -> None:
        """Close all connections."""
        self._logins.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        self._request.session.close()

    def _log_in(self) -> Mapping[str, str]:
        """Return the headers of a request: the token, and the project that pays if one is set."""
        import google.auth
        from google.auth.exceptions import GoogleAuthError

        headers: dict[str, str] = {}
        try:
            if self._credentials is None:
                self._credentials, _ = google.auth.default(scopes=[_SCOPE])
            self._credentials.before_request(self._request, "GET", self._endpoint, headers)
        except (GoogleAuthError, OSError, ValueError) as error:
            # Not chained, and without further arguments: these may hold the answer to a login.
            reason = getattr(error, "strerror", None) or next(iter(error.args), "")
            kind = type(error).__name__
            raise SystemicError(f"no credentials for {_SERVER}: {kind}: {reason}") from None
        return headers
