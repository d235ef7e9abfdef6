"""The embedding pipeline of embedstream: images, texts and audio in, vectors out; no Spark."""
