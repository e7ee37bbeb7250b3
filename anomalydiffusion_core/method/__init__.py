"""The paper: what is asked of a base model, embeddings, spatial encoder, re-weighting, blended sampling."""
