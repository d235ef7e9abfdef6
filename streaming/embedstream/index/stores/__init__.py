"""Where the vectors of an index are kept: one file for each kind of store."""
