"""How many frames and pixels of some media fit a number of tokens: a plan made before anything is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jvlmm.errors import ConfigError
from jvlmm.video.budget import MERGED_PATCH, PixelOptions, image_size, video_frame_pixels, video_frame_size
from jvlmm.video.sampling import FRAME_FACTOR, FrameOptions


@dataclass(frozen=True)
class FitOptions:
    """What becomes of media that make more tokens than their row has room for.

    `frames-then-pixels` shows less of them: fewer frames of the videos, by one factor and none below `least_frames`;
    then smaller pictures, the largest first and none below the least pixels of PixelOptions; then fewer frames again,
    down to two of each video. Of a long video no more frames are taken than can be reached by decoding `most_decoded`
    pixels, which takes some 20 seconds. `strict` refuses the row, and decodes until the deadline.
    """

    rule: Literal["frames-then-pixels", "strict"] = "frames-then-pixels"
    least_frames: int = 16  # of a video, for as long as smaller pictures help
    most_decoded: int = 2**32  # pixels, of the frames taken and of those between them and the key frames before them

    def __post_init__(self) -> None:
        if self.rule not in ("frames-then-pixels", "strict"):
            raise ConfigError(f"fit.rule={self.rule!r} is unknown; choose frames-then-pixels or strict")
        if self.least_frames < FRAME_FACTOR:
            raise ConfigError(f"fit.least_frames={self.least_frames} must be at least {FRAME_FACTOR}")
        if self.most_decoded < 1:
            raise ConfigError(f"fit.most_decoded={self.most_decoded} must be at least 1")


@dataclass(frozen=True)
class Measured:
    """What a plan needs to know of one image or video, found out without decoding its pictures."""

    height: int  # pixels of the file; of a file that is stored turned, as stored: a plan is the same for both
    width: int
    times: tuple[float, ...] = ()  # seconds, of the frames that the options ask for; () of an image
    affordable: int | None = None  # frames that may be taken, where those asked for need too much decoding


@dataclass(frozen=True)
class Plan:
    """How much of one image or video is shown."""

    frames: int  # 0 of an image
    max_pixels: int  # of one frame

    def frame_options(self, asked: FrameOptions) -> FrameOptions:
        """The options that take so many frames."""
        return replace(asked, num_frames=self.frames) if self.frames else asked

    def pixel_options(self, asked: PixelOptions) -> PixelOptions:
        """The options that make frames so large."""
        if self.frames:
            return replace(asked, video_max_pixels=max(self.max_pixels, asked.video_min_pixels))
        return replace(asked, max_pixels=max(self.max_pixels, asked.min_pixels))


def asked_plan(medium: Measured, pixels: PixelOptions) -> Plan:
    """All that the options ask for."""
    if not medium.times:
        return Plan(0, pixels.max_pixels)
    return Plan(len(medium.times), video_frame_pixels(len(medium.times), pixels))


def affordable_plan(medium: Measured, pixels: PixelOptions) -> Plan:
    """What the options ask for, but for frames that need too much decoding."""
    plan = asked_plan(medium, pixels)
    return plan if medium.affordable is None else replace(plan, frames=medium.affordable)


def planned_size(medium: Measured, plan: Plan, pixels: PixelOptions) -> tuple[int, int]:
    """(height, width) of the pictures under a plan. Raises VideoError for an impossible aspect ratio."""
    options = plan.pixel_options(pixels)
    if plan.frames:
        return video_frame_size(plan.frames, medium.height, medium.width, options)
    return image_size(medium.height, medium.width, options)


def visual_tokens(medium: Measured, plan: Plan, pixels: PixelOptions) -> int:
    """Tokens of the pictures under a plan: a pair of frames is one picture."""
    height, width = planned_size(medium, plan, pixels)
    return max(plan.frames // FRAME_FACTOR, 1) * (height // MERGED_PATCH) * (width // MERGED_PATCH)


def fitted(
    media: Sequence[Measured], pixels: PixelOptions, fit: FitOptions, *, room: int, step_tokens: Sequence[int]
) -> tuple[Plan, ...] | None:
    """The plan of each medium by `FitOptions.rule`; None where even the least of all does not fit.

    `room` tokens are there for all of them; a pair of frames of medium i takes `step_tokens[i]` besides its pixels.
    """

    def fits(plans: Sequence[Plan]) -> bool:
        needed = (
            visual_tokens(medium, plan, pixels) + plan.frames // FRAME_FACTOR * extra
            for medium, plan, extra in zip(media, plans, step_tokens, strict=True)
        )
        return sum(needed) <= room

    def thinned(plans: Sequence[Plan], least: int) -> Callable[[int], list[Plan]]:
        """Of a number of 1024ths, the plans with that share of their frames."""
        return lambda share: [
            replace(plan, frames=max(_even(plan.frames * share / 1024), min(plan.frames, _even(least))))
            for plan in plans
        ]

    # Frames of one clip look alike more than the details of a frame do, so that they go first.
    plans = [affordable_plan(medium, pixels) for medium in media]
    by_frames = thinned(plans, fit.least_frames)
    if fits(by_frames(0)):
        return tuple(by_frames(_largest(1024, lambda share: fits(by_frames(share)))))
    plans = by_frames(0)

    # At the least number of frames all pictures share one bound, in tokens, which spares the small ones.
    def by_pixels(cap: int) -> list[Plan]:
        return [replace(plan, max_pixels=min(plan.max_pixels, cap * MERGED_PATCH**2)) for plan in plans]

    if fits(by_pixels(1)):
        return tuple(by_pixels(_largest(room, lambda cap: fits(by_pixels(cap)))))

    # What is left are pictures of the least size: a row of many videos has room for few frames of each.
    by_frames = thinned(by_pixels(1), FRAME_FACTOR)
    if fits(by_frames(0)):
        return tuple(by_frames(_largest(1024, lambda share: fits(by_frames(share)))))
    return None


def _even(number: float) -> int:
    return int(number) // FRAME_FACTOR * FRAME_FACTOR


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest number of [0, most] for which a condition holds that 0 or 1 fulfils and larger ones may not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
