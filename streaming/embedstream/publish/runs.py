"""Publish a table once, or for as long as the process lives."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedstream.config.publishing import PublishConfig
from embedstream.config.sections import KafkaConfig
from embedstream.follow.retries import Step, keep_following
from embedstream.kafka.client_settings import choose_target
from embedstream.publish.publisher import Publisher
from embedstream.publish.reports import PublishReport, Started
from embedstream.publish.sender import PublishFailed, Sender
from embedstream_core.errors import EmbedstreamError, SetupError, explain

__all__ = ["publish_continuously", "publish_once"]

_LOG = logging.getLogger(__name__)

# Opening a table reads the list of its files.
_CHECK_S = 30.0


def publish_once(
    table: str,
    kafka: KafkaConfig,
    config: PublishConfig,
    *,
    report: Callable[[PublishReport], None],
    stop: threading.Event,
    again: bool = False,
) -> None:
    """Publish up to the version that the table has now, unless it is stopped before.

    Raises:
        SetupError: the table or the topic cannot be used.
        PublishFailed: an error of Kafka or of a library ended it.
    """
    try:
        with _open_publisher(
            table, kafka, config, report=report, stop=stop, again=again
        ) as publisher:
            while not (publisher.is_current or stop.is_set()):
                publisher.step()
    except EmbedstreamError:
        raise
    except Exception as error:
        _LOG.debug("the outcomes were not published", exc_info=True)
        raise PublishFailed(f"the outcomes were not published: {explain(error)}") from error


def publish_continuously(
    table: str,
    kafka: KafkaConfig,
    config: PublishConfig,
    *,
    report: Callable[[PublishReport], None],
    stop: threading.Event,
    again: bool = False,
) -> None:
    """Publish the table's commits until it is stopped; retry after any error."""

    @contextmanager
    def open_steps(take: Callable[[PublishReport], None]) -> Iterator[Step]:
        def reset_again(made: PublishReport) -> None:
            nonlocal again
            again = again and not made.is_progress
            take(made)

        with _open_publisher(
            table, kafka, config, report=reset_again, stop=stop, again=again, check_s=_CHECK_S
        ) as publisher:
            yield publisher.step

    keep_following(open_steps, report=report, stop=stop, poll_s=config.poll_s)


@contextmanager
def _open_publisher(
    table: str,
    kafka: KafkaConfig,
    config: PublishConfig,
    *,
    report: Callable[[PublishReport], None],
    stop: threading.Event,
    again: bool,
    check_s: float = 0.0,
) -> Iterator[Publisher]:
    if config.topic is None:
        raise SetupError("publish.topic names no topic: set it to the one to publish to")
    servers, settings = choose_target(kafka, config)
    with Sender(config.topic, servers, settings) as sender:
        publisher = Publisher(
            table, config, sender, report=report, stop=stop, again=again, check_s=check_s
        )
        address = f"topic '{config.topic}' at {servers}"
        report(Started(address=address, version=publisher.version))
        yield publisher
