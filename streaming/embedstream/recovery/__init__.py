"""Checkpoints, claims, and the ways to resume a stream after a failure."""
