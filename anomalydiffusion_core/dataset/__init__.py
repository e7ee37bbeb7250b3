"""Photos, masks and their layout on disk; windows and augmented views of them."""
