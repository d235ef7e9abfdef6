"""The configuration of a stream."""
