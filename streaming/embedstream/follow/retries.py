"""Follow the table for as long as the process lives, whatever happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from embedstream.follow.reports import FollowReport, Trouble
from embedstream_core.errors import EmbedstreamError, explain

__all__ = ["Report", "Step", "keep_following"]

_LOG = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0

Report = Callable[[Any], None]
"""Takes a report."""

Step = Callable[[], bool]
"""Does a step; returns False if there was nothing to do."""


def keep_following(
    open_follower: Callable[[Report], AbstractContextManager[Step]],
    *,
    report: Report,
    stop: threading.Event,
    poll_s: float,
) -> None:
    """Do steps until it is stopped, with a pause of `poll_s` where there is nothing to do.

    After any error the follower is closed and opened again, with growing pauses up to a minute.
    """
    retry_s, reason = _FIRST_RETRY_S, ""

    def take(made: FollowReport) -> None:
        nonlocal retry_s
        if made.is_progress:
            retry_s = _FIRST_RETRY_S
        report(made)

    while not stop.is_set():
        try:
            with open_follower(take) as step:
                while not stop.is_set():
                    if not step():
                        stop.wait(poll_s)
        except Exception as error:
            is_expected = isinstance(error, EmbedstreamError)
            if not is_expected and explain(error) != reason:
                _LOG.warning("the table is not followed", exc_info=True)
            reason = str(error) if is_expected else explain(error)
            report(Trouble(reason=reason, retry_s=retry_s))
            stop.wait(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)
