"""The names in references to objects: `scheme://bucket/key`."""

from __future__ import annotations

from collections.abc import Collection

from embedstream_core.fetch.errors import Denied
from embedstream_core.settings import Store

__all__ = ["find_object", "split_name"]


def find_object(uri: str, store: Store, buckets: Collection[str]) -> tuple[str, str]:
    """Return the bucket and the key of `store://bucket/key`, whose bucket is one of `buckets`.

    Raises:
        ItemError: REFERENCE_DENIED: as `split_name` says, or the bucket is another one.
    """
    bucket, key = split_name(uri, form=f"{store}://bucket/key")
    if bucket not in buckets:
        allowed = ", ".join(buckets)
        raise Denied(f"bucket {bucket[:63]!r} is not allowed in {store}; allowed: {allowed}")
    return bucket, key


def split_name(uri: str, *, form: str) -> tuple[str, str]:
    """Return the bucket and the key, both as written: nothing is decoded.

    Raises:
        ItemError: REFERENCE_DENIED, with the `form` of a reference: a part is missing, or the key
            has a part `.` or `..`. Clients and proxies may resolve these like folders, and so
            reach another bucket.
    """
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket or not key or {".", ".."} & set(key.split("/")):
        raise Denied(f"such a reference is {form}, without '.' and '..' in the key")
    return bucket, key
