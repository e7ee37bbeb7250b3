"""Prompt templates: neutral photo templates of textual inversion (Gal et al., 2022), and one for mask
pictures.
"""

PHOTO_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a dark photo of the {}",
    "a photo of the {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a good photo of the {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
)
MASK_TEMPLATES = ("a black and white mask of a {}",)
