"""The featurizing pipeline of embedstream: image bytes or references in, vectors out; no Spark."""
