"""What a recipe or the command line sets of frames and pixels; the rest is as the checkpoint asks."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from jvlmm.errors import ConfigError
from jvlmm.video.budget import PixelOptions
from jvlmm.video.sampling import FRAME_FACTOR, FrameOptions


@dataclass(frozen=True)
class FrameOverrides:
    """The fields of `FrameOptions` that are set; None: as the checkpoint asks, else the default.

    `fps` and `num_frames` exclude each other: whichever is set takes the place of the checkpoint's other one.
    """

    sampler: str | None = None
    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    short: Literal["fewer", "refuse"] | None = None

    def __post_init__(self) -> None:
        """Refuses at once what no checkpoint's options go with."""
        needs_number = self.sampler == "uniform" and self.num_frames is None
        self.over(FrameOptions(num_frames=FRAME_FACTOR) if needs_number else FrameOptions())

    def over(self, base: FrameOptions) -> FrameOptions:
        """Returns `base` with what is set. A bound that is set moves the other one, where that is not set."""
        stated = stated_fields(self)
        if self.fps is not None and self.num_frames is None:
            stated["num_frames"] = None
            if base.sampler == "uniform" and self.sampler is None:
                stated["sampler"] = "qwen-vl-utils"  # the other one needs num_frames
        return replace(base, **with_moved_bounds(stated, base, "min_frames", "max_frames"))


@dataclass(frozen=True)
class PixelOverrides:
    """The fields of `PixelOptions` that are set; None: as the checkpoint asks, else the default."""

    min_pixels: int | None = None  # of an image
    max_pixels: int | None = None
    video_min_pixels: int | None = None  # of one frame
    video_max_pixels: int | None = None
    video_total_pixels: int | None = None  # of a whole video, after merging frames in pairs

    def __post_init__(self) -> None:
        """Refuses at once what no checkpoint's bounds go with."""
        self.over(PixelOptions())

    def over(self, base: PixelOptions) -> PixelOptions:
        """Returns `base` with what is set. A bound that is set moves the other one, where that is not set."""
        stated = with_moved_bounds(stated_fields(self), base, "min_pixels", "max_pixels")
        return replace(base, **with_moved_bounds(stated, base, "video_min_pixels", "video_max_pixels"))


def stated_fields(options: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass that are not None."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def overriding(asked: "FrameOverrides | FrameOptions", base: FrameOptions) -> FrameOptions:
    """Returns the frames to take: options that are complete are taken as they are.

    Raises ConfigError for bounds on a number of frames that the checkpoint fixes, as they would do nothing.
    """
    if isinstance(asked, FrameOptions):
        return asked
    frames = asked.over(base)
    for name in ("min_frames", "max_frames"):
        if getattr(asked, name) is not None and frames.num_frames is not None and asked.num_frames is None:
            raise ConfigError(
                f"frames.{name}={getattr(asked, name)} has no effect, as the checkpoint asks for "
                f"{frames.num_frames} frames of every video; set frames.num_frames, or frames.fps as well"
            )
    return frames


def overriding_pixels(asked: "PixelOverrides | PixelOptions", base: PixelOptions) -> PixelOptions:
    """Returns the bounds on pixels: options that are complete are taken as they are."""
    return asked if isinstance(asked, PixelOptions) else asked.over(base)


def with_moved_bounds(stated: dict[str, Any], base: Any, low: str, high: str) -> dict[str, Any]:
    """Returns what is stated, and the bound that is not stated where the other one has passed it."""
    moved = dict(stated)
    if low in stated and high not in stated and stated[low] > getattr(base, high):
        moved[high] = stated[low]
    if high in stated and low not in stated and stated[high] < getattr(base, low):
        moved[low] = stated[high]
    return moved


def as_overrides(options: FrameOptions | PixelOptions) -> FrameOverrides | PixelOverrides:
    """Returns complete options as what a checkpoint states of them."""
    kind = FrameOverrides if isinstance(options, FrameOptions) else PixelOverrides
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})
