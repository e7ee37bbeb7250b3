"""Masks: inventing them, where they come from, and where on a photo they may lie."""
