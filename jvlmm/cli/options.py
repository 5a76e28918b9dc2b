"""What `a.b=c` may set for every verb that opens media."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jvlmm.video.budget import PixelOptions
from jvlmm.video.limits import Limits
from jvlmm.video.sampling import FrameOptions


def names_set(overrides: Sequence[str], group: str) -> frozenset[str]:
    """Returns the names of the options of a group that `GROUP.NAME=VALUE` sets."""
    paths = (override.partition("=")[0] for override in overrides)
    return frozenset(path.removeprefix(f"{group}.") for path in paths if path.startswith(f"{group}."))


@dataclass(frozen=True)
class MediaOptions:
    """Which frames are taken, how large they become, and what is refused."""

    frames: FrameOptions = field(default_factory=FrameOptions)
    pixels: PixelOptions = field(default_factory=PixelOptions)
    limits: Limits = field(default_factory=Limits)
