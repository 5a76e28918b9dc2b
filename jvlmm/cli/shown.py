"""What `a.b=c` may set for every verb that shows media to a checkpoint; imports JAX."""

from dataclasses import dataclass, field

from jvlmm.data.coordinates import Coordinates
from jvlmm.data.positions import TextAfterMedia
from jvlmm.video.limits import Limits
from jvlmm.video.overrides import FrameOverrides, PixelOverrides


@dataclass(frozen=True)
class ShownOptions:
    """How media are shown to a checkpoint; what is unset is as it asks."""

    frames: FrameOverrides = field(default_factory=FrameOverrides)
    pixels: PixelOverrides = field(default_factory=PixelOverrides)
    limits: Limits = field(default_factory=Limits)
    timestamps: str | None = None  # see ProcessorOptions
    text_after_media: TextAfterMedia | None = None  # see positions.mrope_positions
    coordinates: Coordinates | None = None  # of the boxes in answers
