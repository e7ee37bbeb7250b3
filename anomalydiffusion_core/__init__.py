"""AnomalyDiffusion (Hu et al., AAAI 2024, arXiv 2312.05767): few-shot anomaly image-mask pairs by latent
diffusion.
"""

__version__ = "0.1.0"
