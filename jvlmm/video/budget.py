"""How large a frame may be: Qwen's pixel budget (qwen_vl_utils.vision_process)."""

import math
from dataclasses import dataclass

from jvlmm.errors import ConfigError, VideoError

MERGED_PATCH = 28  # pixels on a side of one visual token: patch 14, merged 2 by 2
MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class PixelOptions:
    """Bounds on height x width after resizing, in pixels."""

    min_pixels: int = 4 * MERGED_PATCH**2  # of an image
    max_pixels: int = 1280 * MERGED_PATCH**2
    video_min_pixels: int = 128 * MERGED_PATCH**2  # of one frame
    video_max_pixels: int = 768 * MERGED_PATCH**2
    video_total_pixels: int = int(0.9 * 128_000 * MERGED_PATCH**2)  # of a whole video, after merging frames in pairs

    def __post_init__(self) -> None:
        for low, high in (("min_pixels", "max_pixels"), ("video_min_pixels", "video_max_pixels")):
            smallest, largest = getattr(self, low), getattr(self, high)
            if not 0 < smallest <= largest:
                raise ConfigError(f"pixels.{low}={smallest}, pixels.{high}={largest}: need 0 < {low} <= {high}")
        if self.video_total_pixels <= 0:
            raise ConfigError(f"pixels.video_total_pixels={self.video_total_pixels} must be positive")


DEFAULT_PIXELS = PixelOptions()


def smart_resize(
    height: int, width: int, min_pixels: int, max_pixels: int, factor: int = MERGED_PATCH
) -> tuple[int, int]:
    """Nearest (height, width) that are multiples of `factor` with an area in [min_pixels, max_pixels].

    Rounding is half to even. Sides are never below `factor`, so a very thin picture may stay above `max_pixels`.
    Raises VideoError where one side is more than 200 times the other.
    """
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise VideoError(
            f"is {width}x{height} pixels, the aspect ratio must be at most {MAX_ASPECT_RATIO}; crop or pad it"
        )
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def video_frame_pixels(num_frames: int, options: PixelOptions) -> int:
    """Most pixels one of `num_frames` frames may have, so that the whole video stays within its budget."""
    share = options.video_total_pixels / num_frames * 2
    return int(max(min(options.video_max_pixels, share), int(options.video_min_pixels * 1.05)))


def video_frame_size(
    num_frames: int, height: int, width: int, options: PixelOptions, factor: int = MERGED_PATCH
) -> tuple[int, int]:
    """(height, width) of each of `num_frames` frames after the budget; errors as `smart_resize`."""
    return smart_resize(height, width, options.video_min_pixels, video_frame_pixels(num_frames, options), factor)


def image_size(height: int, width: int, options: PixelOptions, factor: int = MERGED_PATCH) -> tuple[int, int]:
    """(height, width) of an image after the budget; errors as `smart_resize`."""
    return smart_resize(height, width, options.min_pixels, options.max_pixels, factor)
