"""The Delta table of outcomes."""
