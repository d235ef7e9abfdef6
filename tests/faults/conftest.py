"""One broker for all fault tests, and one Spark session for those that end no driver."""

from stream_fixtures import broker, configure, spark, topic

__all__ = ["broker", "configure", "spark", "topic"]
