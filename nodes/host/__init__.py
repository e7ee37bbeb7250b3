"""Everything that touches ComfyUI's own objects: MODEL, CLIP, VAE, folders, progress, previews."""
