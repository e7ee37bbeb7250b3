"""Whether generated pairs help a detector: localisation, classification, quality, baselines."""
