"""Models that transformers or sentence-transformers wrote into folders."""
