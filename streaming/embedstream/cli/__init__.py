"""The command `embedstream`."""
