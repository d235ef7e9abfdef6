"""One broker for all fault tests; each starts Spark in a process of its own, to end it."""

from stream_fixtures import broker, topic

__all__ = ["broker", "topic"]
