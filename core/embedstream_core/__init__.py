"""The embedding pipeline of embedstream: image bytes or references in, vectors out; no Spark."""
