"""Models and weights that are files."""
