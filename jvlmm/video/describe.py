"""What the model would see of a file, found out in the calling process."""

import os
from typing import Any

from jvlmm.video.budget import MERGED_PATCH, PixelOptions, image_size, video_frame_size
from jvlmm.video.container import named
from jvlmm.video.decode import decode_image, decode_video
from jvlmm.video.limits import Limits
from jvlmm.video.probe import probe
from jvlmm.video.sampling import FRAME_FACTOR, FrameOptions

PATCH = MERGED_PATCH // 2


def describe(
    path: str | os.PathLike[str],
    frames: FrameOptions,
    pixels: PixelOptions,
    limits: Limits,
    start: float | None = None,
    end: float | None = None,
    stream: int | None = None,
) -> dict[str, Any]:
    """The record of `inspect.inspect_media`. Raises VideoError with one line."""
    info = probe(path, stream, limits)
    if info.kind == "image":
        clip = decode_image(path, limits)
    else:
        clip = decode_video(path, frames, limits, start, end, stream, pixels)
    with named(path):
        if info.kind == "image":
            height, width = image_size(info.height, info.width, pixels)
        else:
            height, width = video_frame_size(len(clip.indices), info.height, info.width, pixels)
    grid = (-(-len(clip.indices) // FRAME_FACTOR), height // PATCH, width // PATCH)
    record = info.to_dict()
    if info.kind == "video":
        record["duration"] = clip.duration
    record["used"] = {
        "indices": clip.indices.tolist(),
        "times": [round(time, 6) for time in clip.times.tolist()],
        "fps": clip.fps,
        "height": height,
        "width": width,
        "grid": list(grid),
        "visual_tokens": grid[0] * grid[1] * grid[2] // 4,
        "seconds_per_grid": FRAME_FACTOR / clip.fps if clip.fps else 0.0,
    }
    return record
