"""From items to outcomes."""
