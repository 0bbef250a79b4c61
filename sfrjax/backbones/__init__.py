"""Pre-trained networks that turn images into feature maps at levels 1, 2, 3, 4 and "last"."""

from sfrjax.backbones.loading import (
    BACKBONES,
    LEVELS,
    Backbone,
    Level,
    forward,
    level_shapes,
    load_backbone,
    untrained_backbone,
)
from sfrjax.backbones.preprocess import Preprocess

__all__ = [
    "BACKBONES",
    "LEVELS",
    "Backbone",
    "Level",
    "Preprocess",
    "forward",
    "level_shapes",
    "load_backbone",
    "untrained_backbone",
]
