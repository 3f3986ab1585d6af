"""Photographs by row, their transforms, and the door through which a target passes without its labels."""

from __future__ import annotations

from uda_reid.data.images.augmentation import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    augment,
    erase_rectangles,
    flip_and_crop,
    jitter_colours,
    rotate_and_shift,
)
from uda_reid.data.images.damaged import without_damaged
from uda_reid.data.images.decoding import sizes
from uda_reid.data.images.photographs import Photographs, images_of
from uda_reid.data.images.pixels import Progress
from uda_reid.data.images.sealed import target_order, unlabelled

__all__ = [
    "AUGMENTATIONS",
    "IMAGENET_MEAN",
    "Photographs",
    "Progress",
    "augment",
    "erase_rectangles",
    "flip_and_crop",
    "images_of",
    "jitter_colours",
    "rotate_and_shift",
    "sizes",
    "target_order",
    "unlabelled",
    "without_damaged",
]
