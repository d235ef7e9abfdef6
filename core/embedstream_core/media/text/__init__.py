"""From the bytes of a text to token ids."""
