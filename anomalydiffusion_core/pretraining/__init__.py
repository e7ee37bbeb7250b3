"""Making the embedded base again, its sample sheet, and the embeddings that come with it."""
