"""What `a.b=c` may set for every verb that opens media."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jvlmm.video.limits import Limits
from jvlmm.video.overrides import FrameOverrides, PixelOverrides


def names_set(overrides: Sequence[str], group: str) -> frozenset[str]:
    """Returns the names of the options of a group that `GROUP.NAME=VALUE` sets."""
    paths = (override.partition("=")[0] for override in overrides)
    return frozenset(path.removeprefix(f"{group}.") for path in paths if path.startswith(f"{group}."))


@dataclass(frozen=True)
class MediaOptions:
    """Which frames are taken, how large they become, what is refused. Unset: as a checkpoint asks, or by default."""

    frames: FrameOverrides = field(default_factory=FrameOverrides)
    pixels: PixelOverrides = field(default_factory=PixelOverrides)
    limits: Limits = field(default_factory=Limits)
