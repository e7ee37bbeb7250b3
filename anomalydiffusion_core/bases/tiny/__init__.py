"""The embedded base: a small model in Stable Diffusion's layout, its weights, tokenizer and model card."""
