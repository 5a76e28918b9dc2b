"""Which frames of a video to look at."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from jvlmm.errors import ConfigError, VideoError

FRAME_FACTOR = 2  # frames per temporal patch: counts are multiples of it


@dataclass(frozen=True)
class FrameOptions:
    """How many frames to take, and by which rule.

    `qwen-vl-utils` takes `fps` frames per second within [min_frames, max_frames], or `num_frames` where it is
    given. `uniform` needs `num_frames`. Both keep the count even and spread it from the first frame to the last.
    `short` says what becomes of a video of fewer than `num_frames` frames: it gives `fewer`, all that it has, or it is
    `refuse`d, as qwen_vl_utils does.
    """

    sampler: str = "qwen-vl-utils"
    fps: float = 2.0  # frames per second, before the bounds
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    short: Literal["fewer", "refuse"] = "fewer"

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"frames.sampler={self.sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
        if self.short not in ("fewer", "refuse"):
            raise ConfigError(f"frames.short={self.short!r} is unknown; choose fewer or refuse")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"frames.fps={self.fps} must be a positive number of frames per second")
        if self.num_frames is not None and self.num_frames < FRAME_FACTOR:
            raise ConfigError(f"frames.num_frames={self.num_frames} must be at least {FRAME_FACTOR}, or None")
        if self.sampler == "uniform" and self.num_frames is None:
            raise ConfigError("frames.sampler='uniform' needs frames.num_frames; set it, for instance to 16")
        if not FRAME_FACTOR <= self.min_frames <= self.max_frames:
            raise ConfigError(
                f"frames.min_frames={self.min_frames}, frames.max_frames={self.max_frames}: "
                f"need {FRAME_FACTOR} <= min_frames <= max_frames"
            )

    @property
    def asked_frames(self) -> int | None:
        """The even number of frames that `num_frames` stands for; None where it is not set."""
        if self.num_frames is None:
            return None
        pairs = self.num_frames / FRAME_FACTOR
        return (int(pairs) if self.sampler == "uniform" else round(pairs)) * FRAME_FACTOR


def smart_nframes(total_frames: int, video_fps: float, options: FrameOptions) -> int:
    """Number of frames by the rule of `qwen_vl_utils.vision_process.smart_nframes`.

    Raises VideoError where the video has fewer than two frames, or fewer than `num_frames` asks for and
    `options.short` refuses it.
    """
    if options.asked_frames is not None:
        count = options.asked_frames
    else:
        low = math.ceil(options.min_frames / FRAME_FACTOR) * FRAME_FACTOR
        high = min(options.max_frames, total_frames) // FRAME_FACTOR * FRAME_FACTOR
        wanted = total_frames / video_fps * options.fps
        count = int(min(max(wanted, low), high, total_frames)) // FRAME_FACTOR * FRAME_FACTOR
    return _checked(count, total_frames, options)


def spread(total_frames: int, count: int) -> np.ndarray:
    """round(linspace(0, total_frames - 1, count)), int64 [count].

    Computed in float32 and from both ends inwards as `torch.linspace` does, so that ties round to the same frame. Its
    multiply-add rounds once; in float64 the product is exact, so that this does, too.
    """
    step = np.float32(total_frames - 1) / np.float32(max(count - 1, 1))
    position = np.arange(count, dtype=np.float64)
    from_start = (step * position).astype(np.float32)
    from_end = (total_frames - 1 - step * (count - 1 - position)).astype(np.float32)
    return np.rint(np.where(np.arange(count) < count // 2, from_start, from_end)).astype(np.int64)


def sample_qwen(total_frames: int, video_fps: float, options: FrameOptions) -> np.ndarray:
    """The frames `qwen_vl_utils` looks at: int64 [n], increasing."""
    return spread(total_frames, smart_nframes(total_frames, video_fps, options))


def sample_uniform(total_frames: int, video_fps: float, options: FrameOptions) -> np.ndarray:
    """`options.num_frames`, floored to even, from the first frame to the last: int64 [n], increasing."""
    del video_fps
    count = options.asked_frames or 0
    return spread(total_frames, _checked(count, total_frames, options))


def _checked(count: int, total_frames: int, options: FrameOptions) -> int:
    if total_frames < FRAME_FACTOR:
        plural = "" if total_frames == 1 else "s"
        raise VideoError(f"has {total_frames} frame{plural}, a video needs at least {FRAME_FACTOR}; use it as an image")
    if count > total_frames and options.short == "refuse":
        raise VideoError(
            f"has {total_frames} frames, {count} are asked for; lower frames.num_frames, or set frames.short=fewer"
        )
    count = min(count, total_frames // FRAME_FACTOR * FRAME_FACTOR)
    return count


Sampler = Callable[[int, float, FrameOptions], np.ndarray]
SAMPLERS: Mapping[str, Sampler] = MappingProxyType({"qwen-vl-utils": sample_qwen, "uniform": sample_uniform})
DEFAULT_FRAMES = FrameOptions()
