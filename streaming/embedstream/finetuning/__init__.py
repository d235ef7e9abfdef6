"""Finetuning an encoder on the executors of Spark."""
