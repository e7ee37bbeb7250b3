"""Base models: the protocol on diffusers and transformers, single files, the embedded base."""
