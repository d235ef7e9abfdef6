"""Training an encoder with a classifier on labelled images."""
