"""Moving Shapes: a small embedded dataset of drawn clips whose every question has a known answer and reason."""

from jvlmm.data.moving_shapes.dataset import build
from jvlmm.data.moving_shapes.options import MovingShapesOptions, SceneOptions
from jvlmm.data.moving_shapes.reading import (
    caption_examples,
    direct,
    explained,
    lettered,
    lettered_pairs,
    load,
    open_ended,
    scenes,
)

__all__ = [
    "MovingShapesOptions",
    "SceneOptions",
    "build",
    "caption_examples",
    "direct",
    "explained",
    "load",
    "lettered",
    "lettered_pairs",
    "open_ended",
    "scenes",
]
