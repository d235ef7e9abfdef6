"""Checkpoints, claims and all that brings a stream back after a failure."""
