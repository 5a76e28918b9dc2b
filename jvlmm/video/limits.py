"""What a file may ask of the machine before it is refused."""

import math
from dataclasses import dataclass

from jvlmm.errors import ConfigError, VideoError


@dataclass(frozen=True)
class Limits:
    """Bounds checked before any pixel is decoded, and what one file may take of a worker process."""

    deadline_s: float = 30.0  # processor seconds of a worker for one file, whatever else the host does meanwhile
    wall_deadline_s: float = 900.0  # seconds by the clock for one file, for reads that never end
    max_memory: int = 2**31  # bytes of a worker process, with the frames it hands back
    max_frames: int = 1024  # frames taken from one video
    max_pixels: int = 7680 * 4320  # width x height of one decoded frame or image
    max_side: int = 16_384  # width or height of one decoded frame or image
    max_clip_pixels: int = 2**30  # width x height x frames handed back, after resizing: 3 bytes each

    def __post_init__(self) -> None:
        for name in (
            "deadline_s",
            "wall_deadline_s",
            "max_memory",
            "max_frames",
            "max_pixels",
            "max_side",
            "max_clip_pixels",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"limits.{name}={getattr(self, name)} must be positive and finite")

    def check_size(self, width: int, height: int) -> None:
        """Raise VideoError where a frame is larger than allowed."""
        if width < 1 or height < 1:
            raise VideoError("has no frame size in its header; re-encode it")
        if max(width, height) > self.max_side:
            raise VideoError(f"is {width}x{height} pixels, a side may have {self.max_side}; scale it down")
        if width * height > self.max_pixels:
            raise VideoError(f"is {width}x{height} pixels, a frame may have {self.max_pixels} in all; scale it down")

    def check_count(self, num_frames: int) -> None:
        """Raise VideoError where more frames are taken than allowed."""
        if num_frames > self.max_frames:
            raise VideoError(f"{num_frames} frames are asked for, the limit is {self.max_frames}; lower frames.fps")

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise VideoError where the frames together are larger than allowed."""
        if num_frames * height * width > self.max_clip_pixels:
            raise VideoError(
                f"{num_frames} frames of {width}x{height} pixels are over the limit of {self.max_clip_pixels} pixels; "
                "lower the number of frames or the pixel budget"
            )


DEFAULT_LIMITS = Limits()
