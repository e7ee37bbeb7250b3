"""Writers of generated pairs: one file per format, one table, one shape."""
