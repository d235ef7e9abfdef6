"""One broker and one Spark session for all streaming tests."""

from stream_fixtures import broker, configure, spark, topic

__all__ = ["broker", "configure", "spark", "topic"]
