"""The table that an index follows, without Spark: its versions, and what each commit changes."""
