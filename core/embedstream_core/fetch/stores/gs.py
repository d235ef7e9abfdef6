"""`gs://bucket/key`: objects in the allowed buckets of Google Cloud Storage, keys as written."""

from __future__ import annotations

from datetime import UTC
from ssl import SSLContext
from typing import Any
from urllib.parse import quote

from embedstream_core.errors import SystemicError
from embedstream_core.extras import require_extra
from embedstream_core.fetch.limits import Deadline
from embedstream_core.fetch.stores.client import StoreClient
from embedstream_core.fetch.stores.login import Headers, Login
from embedstream_core.fetch.stores.names import find_object
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
        self._login = Login("gs", self._log_in)

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """Return the bytes of the object."""
        bucket, key = find_object(uri, "gs", self._buckets)
        headers = self._login.get_headers(deadline)
        url = f"{self._endpoint}/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}?alt=media"
        return self._client.get(url, headers, deadline)

    def close(self) -> None:
        """Close all connections."""
        self._login.close()
        self._client.close()
        self._request.session.close()

    def _log_in(self) -> tuple[Headers, float]:
        """Return the token, and the project that pays if one is set, as headers; and their end."""
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
        # In UTC, without saying so.
        expiry = self._credentials.expiry
        return headers, expiry.replace(tzinfo=UTC).timestamp() if expiry else 0
