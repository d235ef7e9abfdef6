"""Questions to the table: its rows that are nearest to an image, a text or a clip."""
