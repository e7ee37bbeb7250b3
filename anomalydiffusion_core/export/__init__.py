"""Writers of generated pairs: one file per format."""
