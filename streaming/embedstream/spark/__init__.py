"""Spark itself: its session, its jars, its file systems."""
