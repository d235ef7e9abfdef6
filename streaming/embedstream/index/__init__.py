"""A vector index that follows the table."""
