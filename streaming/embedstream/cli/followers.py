"""The processes that a stream's driver keeps running: the index, and what publishes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from embedstream.config.sections import StreamConfig
from embedstream.follow.process import Follower, FollowerProcess
from embedstream_core.errors import SetupError

__all__ = ["Followers", "prepare_followers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """The processes that follow the stream's table; None for one that the stream does not have."""

    index: FollowerProcess | None = None
    publish: FollowerProcess | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep them running."""
        with self.index or nullcontext(), self.publish or nullcontext():
            yield

    def finish(self) -> None:
        """Bring them to the table's last version."""
        for one in (self.index, self.publish):
            if one is not None:
                one.finish()


def prepare_followers(
    config: StreamConfig, build: Callable[[str], Sequence[str]] | None
) -> Followers:
    """Return the processes that the configuration asks for, not started.

    `build` returns the command of a process by its name; None if there is no configuration file.

    Raises:
        SetupError: there is none, and a process is asked for.
    """

    def prepare(follower: Follower, *, key: str) -> FollowerProcess:
        if build is None:
            raise SetupError(f"{key} needs a configuration file: use `embedstream run`")
        return FollowerProcess(
            follower,
            # The child must not ask the catalog again.
            [*build(follower.name), f"--set=table.path={config.table.path}"],
            table=config.table.path,
            stop_s=config.trigger.stop_timeout_s,
        )

    index = publish = None
    if config.index.follow:
        from embedstream.index.reports import INDEX

        index = prepare(INDEX, key="index.follow")
    if config.publish.topic is not None and config.publish.follow:
        from embedstream.publish.reports import PUBLISH

        publish = prepare(PUBLISH, key="publish.follow")
    return Followers(index=index, publish=publish)
