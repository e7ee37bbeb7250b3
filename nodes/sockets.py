"""The pack's own socket types; everything else travels in ComfyUI's standard ones. Links match by name."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

AnomalyEmbedding = io.Custom("ADIFF_ANOMALY_EMBEDDING")  # a `Learned`: e_a, e_m by defect type, and E
SpatialTokens = io.Custom("ADIFF_SPATIAL_TOKENS")  # TokensByEncoder: E(m) (B,n,d) per text encoder
PairScores = io.Custom("ADIFF_PAIR_SCORES")  # for each pair what its manifest row says of it
Localizer = io.Custom("ADIFF_LOCALIZER")  # (network, pixels per side)
FewShotDataset = io.Custom("ADIFF_DATASET")  # a Dataset: image-mask pairs and normal photos
Regions = io.Custom("ADIFF_REGIONS")  # CroppedRegions: photos, masks, and where each crop lies in them
