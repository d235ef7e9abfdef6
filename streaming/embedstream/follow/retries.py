"""Follow the table for as long as the process lives, whatever happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from embedstream.follow.reports import FollowReport, Trouble
from embedstream_core.errors import EmbedstreamError, explain

__all__ = ["FIRST_RETRY_S", "LAST_RETRY_S", "OpenFollower", "Report", "Step", "keep_following"]

_log = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0

Report = Callable[[Any], None]
"""Takes a report."""

Step = Callable[[], bool]
"""Does a step; returns False if there was nothing to do."""

OpenFollower = Callable[[Report, bool], AbstractContextManager[Step]]
"""Opens a follower for the time of a context.

The second argument is whether an earlier one, which an error ended, has made progress. What is done
once, such as a full pass that the user asked for, is then not begun again.
"""


def keep_following(
    open_follower: OpenFollower,
    *,
    report: Report,
    stop: threading.Event,
    poll_s: float,
) -> None:
    """Do steps until it is stopped, with a pause of `poll_s` where there is nothing to do.

    After any error the follower is closed and opened again, with growing pauses up to a minute.
    """
    retry_s, reason, has_begun = FIRST_RETRY_S, "", False

    def take(made: FollowReport) -> None:
        nonlocal retry_s, has_begun
        if made.is_progress:
            retry_s, has_begun = FIRST_RETRY_S, True
        report(made)

    while not stop.is_set():
        try:
            with open_follower(take, has_begun) as step:
                while not stop.is_set():
                    if not step():
                        stop.wait(poll_s)
        except Exception as error:
            is_expected = isinstance(error, EmbedstreamError)
            if not is_expected and explain(error) != reason:
                _log.warning("the table is not followed", exc_info=True)
            reason = str(error) if is_expected else explain(error)
            report(Trouble(reason=reason, retry_s=retry_s))
            stop.wait(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)
