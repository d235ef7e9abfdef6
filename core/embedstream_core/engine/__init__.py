"""From samples to vectors, on a device."""
