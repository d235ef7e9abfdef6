"""`embedstream` that is killed at a named point: `python killed_publisher.py POINT publish …`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import embedstream.publish.sender as sender
from embedstream.cli.app import app
from embedstream.follow import data_files
from embedstream.publish.publisher import Publisher
from embedstream.publish.sender import Sender
from embedstream.publish.state import StateFile

__all__ = ["POINTS"]

POINTS = (
    "full pass",
    "message sent",
    "commit sent",
    "messages acknowledged",
    "middle of a commit",
    "state written",
)
"""The points at which it publishes; a part of a commit has 20 messages."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arrange(point: str) -> None:
    """Let the publisher kill its process at the point."""
    send, flush, write, publish = Sender.send, Sender.flush, StateFile.write, Publisher._publish
    is_publishing = False

    def publish_commit(self: Publisher, commit: Any) -> None:
        nonlocal is_publishing
        is_publishing = True
        publish(self, commit)

    def send_message(self: Sender, message: Any) -> None:
        send(self, message)
        if point == "message sent" and is_publishing:
            _kill()

    def wait(self: Sender) -> None:
        if point == "commit sent" and is_publishing:
            _kill()
        flush(self)
        if point == "messages acknowledged" and is_publishing:
            _kill()

    def write_state(self: StateFile, state: Any) -> None:
        write(self, state)
        if (
            (point == "state written" and is_publishing and state.partial is None)
            or (point == "middle of a commit" and state.partial is not None)
            or (point == "full pass" and state.full_pass and state.full_pass.rows_done)
        ):
            _kill()

    Publisher._publish = publish_commit  # type: ignore[method-assign]
    Sender.send = send_message  # type: ignore[method-assign]
    Sender.flush = wait  # type: ignore[method-assign]
    StateFile.write = write_state  # type: ignore[method-assign]


if __name__ == "__main__":
    _arrange(sys.argv[1])
    vars(data_files)["_BATCH_ROWS"] = 10
    vars(sender)["_MAX_QUEUED"] = 20
    del sys.argv[1]
    app()
