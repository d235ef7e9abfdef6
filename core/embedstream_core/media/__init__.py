"""From bytes to a sample that a model can take, within limits."""
