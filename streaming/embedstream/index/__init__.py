"""Searching the table."""
