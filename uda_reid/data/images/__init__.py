"""Photographs by row, their transforms, and the door through which a target passes without its labels."""

from __future__ import annotations

from uda_reid.data.images.augmentation import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    Share,
    augment,
    erase_rectangles,
    flip_and_crop,
    jitter_colours,
    rotate_and_shift,
    skip,
)
from uda_reid.data.images.photographs import Photographs, images_of, sizes, target_order, unlabelled
from uda_reid.data.images.pixels import Progress

__all__ = [
    "AUGMENTATIONS",
    "IMAGENET_MEAN",
    "Photographs",
    "Progress",
    "Share",
    "augment",
    "erase_rectangles",
    "flip_and_crop",
    "images_of",
    "jitter_colours",
    "rotate_and_shift",
    "sizes",
    "skip",
    "target_order",
    "unlabelled",
]
