"""Files → frames, in the calling process. For files one does not trust use `workers.Decoder`."""

import os
from contextlib import suppress
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from jvlmm.errors import VideoError
from jvlmm.video.background import image_to_rgb
from jvlmm.video.budget import PixelOptions, image_size, video_frame_size
from jvlmm.video.clip import Clip
from jvlmm.video.container import check_file, named, one_line, open_container, open_stream
from jvlmm.video.content import IMAGE_FORMATS, text_kind
from jvlmm.video.frames import MissingFrameError, pictures
from jvlmm.video.limits import DEFAULT_LIMITS, Limits
from jvlmm.video.patches import resize_frames
from jvlmm.video.sampling import DEFAULT_FRAMES, SAMPLERS, FrameOptions
from jvlmm.video.source import Source, exhaustive_source, hides_frames, quick_source
from jvlmm.video.structure import check_structure
from jvlmm.video.timeline import Timeline
from jvlmm.video.webp import read_animation, webp_source


def decode_video(
    path: str | os.PathLike[str],
    frames: FrameOptions = DEFAULT_FRAMES,
    limits: Limits = DEFAULT_LIMITS,
    start: float | None = None,
    end: float | None = None,
    stream: int | None = None,
    pixels: PixelOptions | None = None,
) -> Clip:
    """Sample the frames shown between `start` and `end` seconds of a video (all of it by default).

    `stream` is the number of a video stream in the file; by default the best one is taken. Frame numbers and times
    are those of the whole stream, in presentation order; the first frame is at 0 s. With `pixels`, each frame is
    resized to the pixel budget as it is decoded, which bounds the memory of long videos. Raises VideoError with one
    line.
    """

    def clip(source: Source) -> Clip:
        indices, fps = sample(source.timeline, frames, start, end)
        limits.check_count(len(indices))
        fit = partial(video_frame_size, len(indices), options=pixels) if pixels else None
        taken, file_size = pictures(source.frames(indices), indices, limits, fit)
        return Clip(taken, source.timeline.times[indices], indices, source.timeline.duration, fps, file_size)

    with named(path):
        file = check_file(path)
        animation = read_animation(file)
        if animation is not None:
            return clip(webp_source(file, animation, limits))
        packets = 0
        with open_container(path) as container, suppress(MissingFrameError):
            video = open_stream(container, limits, stream)
            check_structure(file, container, video)
            source = quick_source(container, video)
            if source is not None:
                packets = 0 if hides_frames(video) else len(source.timeline)
                return clip(source)
        with exhaustive_source(path, limits, stream, packets) as source:
            return clip(source)


def sample(
    timeline: Timeline, frames: FrameOptions, start: float | None, end: float | None
) -> tuple[np.ndarray, float]:
    """Numbers int64 [n] of the frames to take within a span of seconds, and their rate in frames per second."""
    first, stop = timeline.within(start, end)
    if (start is not None or end is not None) and stop - first < 2:
        raise VideoError(
            f"shows {stop - first} frames between {start} and {end} s of {timeline.duration:.2f} s; widen the span"
        )
    indices = first + SAMPLERS[frames.sampler](stop - first, timeline.fps, frames)
    return indices, len(indices) / (stop - first) * timeline.fps


def decode_image(
    path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS, pixels: PixelOptions | None = None
) -> Clip:
    """Read a still image, upright by its EXIF flag and as RGB: a clip of one frame at time 0.

    With `pixels` it is resized to the budget. Raises VideoError with one line.
    """
    with named(path):
        file = check_file(path)
        try:
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                limits.check_size(*image.size)
                picture = image_to_rgb(ImageOps.exif_transpose(image))[None]
        except (VideoError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise anything on damaged files
            text = text_kind(file)
            if text is not None:
                raise VideoError(f"is no readable image (it is {text}); give a picture") from None
            raise VideoError(f"is no readable image ({one_line(error)}); check the file or re-encode it") from None
        file_size = picture.shape[1:3]
        if pixels:
            picture = resize_frames(picture, image_size(*file_size, pixels))
        return Clip(picture, np.zeros(1), np.zeros(1, np.int64), duration=0.0, file_size=file_size)
