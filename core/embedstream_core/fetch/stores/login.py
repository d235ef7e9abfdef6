"""Access tokens: each process asks for one, and again shortly before it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from embedstream_core.fetch.limits import Deadline

__all__ = ["Headers", "Login"]

Headers = Mapping[str, str]

# So that none ends during a request.
_SPARE_S = 300
# By store and environment. Spark's workers run task after task, each with sources of its own, and
# end when a task fails, so a token that a store refuses is not kept.
_kept: Final[dict[tuple[str, frozenset[tuple[str, str]]], tuple[Headers, float]]] = {}


class Login:
    """The headers that authorize requests to `store`.

    `log_in` asks for them, and returns them with their end in seconds since 1970, 0 if that is not
    known. It may raise SystemicError. It runs in a thread, because it has no deadline; there is one
    thread, so the references that wait all wait for the same answer.
    """

    def __init__(self, store: str, log_in: Callable[[], tuple[Headers, float]]) -> None:
        self._key = (store, frozenset(os.environ.items()))
        self._log_in = log_in
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{store}-login")

    def get_headers(self, deadline: Deadline) -> Headers:
        """Return the headers of a request, from the last answer while it is valid."""
        return deadline.wait_for(self._thread.submit(self._ask))

    def close(self) -> None:
        """End the thread; a login that hangs ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self) -> Headers:
        headers, ends_at = _kept.get(self._key, ({}, 0.0))
        if ends_at - time.time() < _SPARE_S:
            headers, ends_at = _kept[self._key] = self._log_in()
        return headers
