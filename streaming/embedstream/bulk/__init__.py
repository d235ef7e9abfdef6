"""Work in chunks: replaying a table, embedding files."""
