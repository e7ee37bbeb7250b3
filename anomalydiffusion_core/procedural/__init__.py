"""Drawn surfaces, objects and defects: food of the embedded base, of masks, of baselines and of the demo."""
