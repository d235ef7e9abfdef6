"""The table's commits in order, without Spark: what each changes, and who follows them."""
