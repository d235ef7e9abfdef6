"""From the bytes of an audio file to windows of samples."""
