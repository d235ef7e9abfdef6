"""`s3://bucket/key`, `s3a` and `s3n` too: objects in the allowed buckets, keys as written."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from embedstream_core.errors import EmbedstreamError, SetupError, SystemicError
from embedstream_core.extras import require_extra
from embedstream_core.fetch import verdicts
from embedstream_core.fetch.headers import check_encoding, parse_retry_after
from embedstream_core.fetch.limits import Deadline, read_within
from embedstream_core.settings import FetchPolicy

__all__ = ["S3Source"]

_CHUNK_BYTES = 64 * 1024
_MISSING = {"NoSuchKey", "NoSuchBucket", "404"}
_PASSING = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable"}
_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}


class S3Source:
    """Reads objects with one boto3 client, with the credentials that boto3 finds by itself.

    Raises MissingExtra without boto3. `fetch` raises SystemicError for credentials that are
    missing, wrong or expired: then every object would fail.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._client = _client(policy)
        # botocore limits each wait, not their sum: the caller waits for a thread, to its deadline.
        self._readers = ThreadPoolExecutor(policy.connections_per_host, thread_name_prefix="s3")

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """The bytes of the object."""
        bucket, key = _bucket_and_key(uri)
        if bucket not in self._policy.buckets:
            allowed = verdicts.listed(self._policy.buckets)
            raise verdicts.denied(f"bucket {bucket[:63]!r} is not allowed; allowed: {allowed}")
        return deadline.wait_for(self._readers.submit(self._read, bucket, key, deadline))

    def close(self) -> None:
        """Closes all connections."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _read(self, bucket: str, key: str, deadline: Deadline) -> bytes:
        max_bytes = self._policy.max_bytes
        with _translated():
            answer = self._client.get_object(Bucket=bucket, Key=key)
            body = answer["Body"]
            try:
                check_encoding(answer.get("ContentEncoding", ""))
                # Some stores send in chunks and give no length.
                if answer.get("ContentLength", 0) > max_bytes:
                    raise verdicts.too_large(max_bytes)
                chunks = body.iter_chunks(_CHUNK_BYTES)
                return read_within(chunks, max_bytes=max_bytes, deadline=deadline)
            finally:
                body.close()


def _client(policy: FetchPolicy) -> Any:
    with require_extra("s3", feature="an s3:// reference"):
        from boto3.session import Session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    config = Config(
        connect_timeout=policy.timeout_s,
        read_timeout=policy.timeout_s,
        max_pool_connections=policy.connections_per_host,
        retries={"total_max_attempts": 1},
    )
    try:
        return Session().client(
            "s3", endpoint_url=policy.s3_endpoint, region_name=policy.s3_region, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise SetupError(f"S3 cannot be set up: {error}") from error


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    # Clients and proxies on the way may take dots for folders, and so reach another bucket.
    if not bucket or not key or {".", ".."} & set(key.split("/")):
        raise verdicts.denied("an S3 reference is s3://bucket/key, without '.' and '..' in the key")
    return bucket, key


@contextmanager
def _translated() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        raise _verdict(error.response) from error
    except (BotoCoreError, ResponseParserError) as error:
        raise _failure(error) from error
    except ValueError as error:
        raise verdicts.unreadable("S3 answered with headers that cannot be read") from error


def _verdict(response: dict[str, Any]) -> EmbedstreamError:
    code = str(response.get("Error", {}).get("Code", ""))
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    reason = f"S3 answered {status} {code}"
    if code in _CREDENTIALS:
        return SystemicError(f"{reason}: check the credentials and the clock of this machine")
    if code in _MISSING:
        return verdicts.not_found(reason)
    if code in _PASSING or status >= 500 or status == 429:
        headers = metadata.get("HTTPHeaders", {})
        pause_s = parse_retry_after(headers.get("retry-after"), headers.get("date"))
        return verdicts.try_again(reason, retry_after_s=pause_s)
    return verdicts.unreadable(reason)


def _failure(error: Exception) -> EmbedstreamError:
    """What botocore itself reports: on the way to S3, or before it went there."""
    from botocore import exceptions

    without_credentials = (
        exceptions.CredentialRetrievalError,
        exceptions.MetadataRetrievalError,
        exceptions.NoAuthTokenError,
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.SSOError,
        exceptions.TokenRetrievalError,
    )
    if isinstance(error, without_credentials):
        return SystemicError(f"no credentials for S3: {error}")
    if isinstance(error, exceptions.ParamValidationError):
        return verdicts.denied("S3 takes no such bucket or key")
    if isinstance(error, exceptions.ReadTimeoutError | exceptions.ConnectTimeoutError):
        return verdicts.timed_out("S3 did not answer in time")
    return verdicts.try_again(f"S3 could not be read: {type(error).__name__}")
