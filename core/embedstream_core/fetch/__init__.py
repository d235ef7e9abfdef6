"""From a reference to its bytes."""
