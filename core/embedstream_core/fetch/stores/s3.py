"""`s3://bucket/key`, `s3a` and `s3n` too: objects in the allowed buckets, keys as written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from embedstream_core.errors import EmbedstreamError, SetupError, SystemicError
from embedstream_core.extras import require_extra
from embedstream_core.fetch.errors import Denied, NotFound, TimedOut, TryAgain, Unreadable
from embedstream_core.fetch.headers import build_retry_error
from embedstream_core.fetch.limits import Deadline, read_within
from embedstream_core.fetch.stores.names import find_object
from embedstream_core.settings import FetchPolicy

__all__ = ["S3Source"]

_CHUNK_BYTES = 64 * 1024
_MISSING = {"NoSuchKey", "NoSuchBucket", "404"}
_RETRIED = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable"}
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

    `fetch` raises SystemicError for credentials that are missing, wrong or expired, because every
    object would fail.

    Raises:
        SetupError: boto3 refuses the endpoint or the region.
        MissingExtra: boto3 is not installed.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        with require_extra("s3", feature="an s3:// reference"):
            from boto3.session import Session
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        self._policy = policy
        self._buckets = [rule.name for rule in policy.find_buckets("s3")]
        config = Config(
            connect_timeout=policy.timeout_s,
            read_timeout=policy.timeout_s,
            max_pool_connections=policy.connections_per_host,
            retries={"total_max_attempts": 1},
        )
        place = {"endpoint_url": policy.s3_endpoint, "region_name": policy.s3_region}
        try:
            self._client = Session().client("s3", **place, config=config)
        except (BotoCoreError, ValueError) as error:
            raise SetupError(f"S3 cannot be set up: {error}") from error
        # botocore limits each wait, not their sum: the caller waits for a thread, to its deadline.
        self._readers = ThreadPoolExecutor(policy.connections_per_host, thread_name_prefix="s3")

    def fetch(self, uri: str, deadline: Deadline) -> bytes:
        """Return the bytes of the object."""
        bucket, key = find_object(uri, "s3", self._buckets)
        return deadline.wait_for(self._readers.submit(self._read, bucket, key, deadline))

    def close(self) -> None:
        """Close all connections."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _read(self, bucket: str, key: str, deadline: Deadline) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            response = self._client.get_object(Bucket=bucket, Key=key)
            with closing(response["Body"]) as body:
                # A proxy may answer 204 or 206, which botocore takes for success.
                if (status := response["ResponseMetadata"]["HTTPStatusCode"]) != 200:
                    raise Unreadable(f"S3 answered {status}")
                return read_within(
                    body.iter_chunks(_CHUNK_BYTES),
                    encoding=response.get("ContentEncoding", ""),
                    # Some stores send in chunks and give no length.
                    declared_bytes=response.get("ContentLength", 0),
                    max_bytes=self._policy.max_bytes,
                    deadline=deadline,
                )
        except (ClientError, BotoCoreError, ResponseParserError, OSError) as error:
            raise _convert(error) from error
        except ValueError as error:
            raise Unreadable("S3 answered with headers that cannot be read") from error


def _convert(error: Exception) -> EmbedstreamError:
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
        return Denied("S3 does not accept this bucket or key")
    if isinstance(error, exceptions.ReadTimeoutError | exceptions.ConnectTimeoutError):
        return TimedOut("S3 did not answer in time")
    if not isinstance(error, exceptions.ClientError):
        return TryAgain(f"S3 could not be read: {type(error).__name__}")
    code = str(error.response.get("Error", {}).get("Code", ""))
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    reason = f"S3 answered {status} {code}"
    if code in _CREDENTIALS:
        return SystemicError(f"{reason}: check the credentials and the clock of this machine")
    if code == "InvalidObjectState":
        return Unreadable(f"{reason}: the object is archived; restore it first")
    if code in _MISSING:
        return NotFound(reason)
    if code in _RETRIED or status >= 500 or status == 429:
        return build_retry_error(reason, metadata.get("HTTPHeaders", {}))
    return Unreadable(reason)
