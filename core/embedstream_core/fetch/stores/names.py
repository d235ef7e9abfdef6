"""The names in references to objects: `scheme://bucket/key`."""

from __future__ import annotations

from embedstream_core.fetch.errors import Denied

__all__ = ["split_name"]


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
