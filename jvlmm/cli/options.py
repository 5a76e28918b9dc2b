"""What `a.b=c` may set for every verb that opens media."""

from dataclasses import dataclass, field

from jvlmm.video.budget import PixelOptions
from jvlmm.video.limits import Limits
from jvlmm.video.sampling import FrameOptions


@dataclass(frozen=True)
class MediaOptions:
    """Which frames are taken, how large they become, and what is refused."""

    frames: FrameOptions = field(default_factory=FrameOptions)
    pixels: PixelOptions = field(default_factory=PixelOptions)
    limits: Limits = field(default_factory=Limits)
