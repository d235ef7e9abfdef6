"""`abfss://container@account.dfs.core.windows.net/key`, `abfs` and `az` too: blobs of Azure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import format_datetime
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import quote

from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.extras import require_extra
from embedstream_core.fetch.errors import Denied
from embedstream_core.fetch.limits import Deadline
from embedstream_core.fetch.stores.client import StoreClient
from embedstream_core.fetch.stores.names import split_name
from embedstream_core.settings import BucketRule, FetchPolicy

__all__ = ["AzureSource"]

_SERVER = "Azure"
_FORM = "abfss://container@account.dfs.core.windows.net/key or az://container/key"
_SCOPE = "https://storage.azure.com/.default"
# Tokens need 2017-11-09 at least; this one is old enough for Azurite and every cloud.
_VERSION = "2021-12-02"
# A token is asked for again this long before its end, so that none ends during a request.
_SPARE_S = 300
# All blobs of the account would fail: its credentials or its firewall refuse us. What else a 403
# says holds for one container.
_SYSTEMIC: Final[set[int | str]] = {
    401,
    "AccountIsDisabled",
    "AuthenticationFailed",
    "AuthorizationFailure",
    "InvalidAuthenticationInfo",
    "KeyBasedAuthenticationNotPermitted",
    "NoAuthenticationInformation",
}


class AzureSource:
    """Reads blobs with an account's key, a shared access signature, or what azure-identity finds.

    The key is `AZURE_STORAGE_ACCOUNT_KEY`, the signature `AZURE_STORAGE_SAS_TOKEN`. They are used
    for the account `AZURE_STORAGE_ACCOUNT_NAME`, or for all if that is not set. `fetch` raises
    SystemicError for credentials that are missing, wrong or expired, because every blob would fail.

    Raises:
        SetupError: the account's key is not in base64.
        MissingExtra: azure-identity is needed and not installed.
    """

    def __init__(self, policy: FetchPolicy, *, tls: SSLContext | None = None) -> None:
        self._rules = policy.find_buckets("azure")
        self._client = StoreClient(
            policy,
            server=_SERVER,
            code_header="x-ms-error-code",
            systemic=_SYSTEMIC,
            tls=tls,
        )
        self._endpoint = policy.azure_endpoint and policy.azure_endpoint.rstrip("/")
        self._owner = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        self._signature = os.environ.get("AZURE_STORAGE_SAS_TOKEN", "").lstrip("?")
        try:
            key = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY", "")
            self._key = base64.b64decode(key, validate=True)
        except binascii.Error as error:
            raise SetupError("AZURE_STORAGE_ACCOUNT_KEY is not a key: it is base64") from error
        self._identity: Any = None
        if any(not self._has_secret(rule) for rule in self._rules):
            with require_extra("azure", feature="an abfss:// reference"):
                from azure.identity import DefaultAzureCredential
            self._identity = DefaultAzureCredential()
        self._token, self._token_ends_at = "", 0.0
        # One thread: the references that wait for a token all wait for the same one.
        self._logins = ThreadPoolExecutor(1, thread_name_prefix="azure-login")

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """Return the bytes of the blob."""
        bucket, key = split_name(uri, form=_FORM)
        rule = self._find_rule(bucket)
        account = rule.host.partition(".")[0]
        path = f"/{rule.name}/{quote(key, safe='/')}"
        if self._endpoint is not None:
            path = f"/{account}{path}"
        url = f"{self._endpoint or f'https://{rule.host}'}{path}"
        headers = {"x-ms-version": _VERSION}
        if not self._has_secret(rule):
            token = deadline.wait_for(self._logins.submit(self._log_in))
            headers["Authorization"] = f"Bearer {token}"
        elif self._key:
            headers["x-ms-date"] = format_datetime(datetime.now(UTC), usegmt=True)
            headers["Authorization"] = _sign(self._key, account, path, headers)
        else:
            url += f"?{self._signature}"
        return self._client.get(url, headers, deadline)

    def close(self) -> None:
        """Close all connections."""
        self._logins.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        if self._identity is not None:
            self._identity.close()

    def _find_rule(self, bucket: str) -> BucketRule:
        """Return the rule of `container@host`, or of `container` if one account has it."""
        container, _, host = bucket.partition("@")
        host = host.lower().replace(".dfs.", ".blob.", 1)
        found = [rule for rule in self._rules if rule.name == container and host in (rule.host, "")]
        if len(found) == 1:
            return found[0]
        if found:
            raise Denied(f"container {container!r} is allowed in several accounts: write {_FORM}")
        allowed = ", ".join(f"{rule.name}@{rule.host}" for rule in self._rules)
        raise Denied(f"container {bucket[:200]!r} is not allowed; allowed: {allowed}")

    def _has_secret(self, rule: BucketRule) -> bool:
        is_owner = self._owner in ("", rule.host.partition(".")[0])
        return is_owner and bool(self._key or self._signature)

    def _log_in(self) -> str:
        """Return a token of azure-identity, the last one as long as it is valid."""
        from azure.core.exceptions import AzureError

        if self._token_ends_at - datetime.now(UTC).timestamp() < _SPARE_S:
            try:
                self._token, self._token_ends_at = self._identity.get_token(_SCOPE)
            except AzureError as error:
                # Not chained: the causes may hold the answer to a login.
                reason = " ".join(error.message.split())
                raise SystemicError(f"no credentials for {_SERVER}: {reason}") from None
        return self._token


def _sign(key: bytes, account: str, path: str, headers: Mapping[str, str]) -> str:
    """Return the header `Authorization` of a GET without a query: Azure's scheme "Shared Key".

    https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
    """
    # The twelve headers in between are not sent.
    named = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    text = "GET" + "\n" * 12 + f"{named}/{account}{path}"
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return f"SharedKey {account}:{base64.b64encode(digest).decode()}"
