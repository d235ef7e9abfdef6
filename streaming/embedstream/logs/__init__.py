"""The log: events with names and fields, its two formats, and records of other processes."""
