"""The log: events with names and fields, its two formats, records of other processes, outages."""
