"""What a plan needs to know of a file: its size and the times of the frames asked for, from its packets alone."""

import os
from contextlib import suppress

import numpy as np
from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video.container import check_file, named, one_line, open_container, open_stream
from jvlmm.video.content import IMAGE_FORMATS, text_kind
from jvlmm.video.decode import sample
from jvlmm.video.fitting import Measured
from jvlmm.video.frames import MissingFrameError
from jvlmm.video.limits import DEFAULT_LIMITS, Limits
from jvlmm.video.sampling import DEFAULT_FRAMES, FRAME_FACTOR, FrameOptions, spread
from jvlmm.video.source import exhaustive_source
from jvlmm.video.timeline import Timeline, scan_packets
from jvlmm.video.webp import read_animation, webp_source


def measure_video(
    path: str | os.PathLike[str],
    frames: FrameOptions = DEFAULT_FRAMES,
    limits: Limits = DEFAULT_LIMITS,
    start: float | None = None,
    end: float | None = None,
    most_decoded: int | None = None,
) -> Measured:
    """Measure a video; its frames are decoded only where its packets do not tell their times.

    With `most_decoded` pixels it is told how many of the frames asked for can be reached by decoding no more.

    Raises VideoError as decoding does.
    """
    with named(path):
        animation = read_animation(check_file(path))
        if animation is not None:
            timeline = webp_source(check_file(path), animation, limits).timeline
            indices, _ = sample(timeline, frames, start, end)
            return Measured(animation.height, animation.width, tuple(timeline.times[indices].tolist()))
        timeline = None
        with open_container(path) as container, suppress(MissingFrameError):
            stream = open_stream(container, limits)
            height, width = stream.codec_context.height, stream.codec_context.width
            timeline = scan_packets(container, stream)
        if timeline is None:
            with exhaustive_source(path, limits, None) as source:
                timeline = source.timeline
        indices, _ = sample(timeline, frames, start, end)
        times, frames_of = tuple(timeline.times[indices].tolist()), most_decoded and most_decoded // (height * width)
        return Measured(height, width, times, None if frames_of is None else affordable(timeline, indices, frames_of))


def affordable(timeline: Timeline, indices: np.ndarray, most: int) -> int | None:
    """How many frames, spread as `indices` are, can be taken by decoding `most`; None where all can.

    Also None where two frames already need more, as in a file without key frames: then fewer spare nothing.
    """

    def needed(count: int) -> int:
        wanted = indices[0] + spread(int(indices[-1] - indices[0]) + 1, count)
        keys = timeline.keyframes[np.maximum(np.searchsorted(timeline.keyframes, wanted, "right") - 1, 0)]
        before = np.concatenate([[-1], wanted[:-1]])
        return int((wanted - np.maximum(keys - 1, before)).sum())

    if needed(len(indices)) <= most or needed(FRAME_FACTOR) > most:
        return None
    low, high = 1, len(indices) // FRAME_FACTOR
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle * FRAME_FACTOR) <= most else (low, middle - 1)
    return low * FRAME_FACTOR


def measure_image(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> Measured:
    """Measure a still image from its header. Raises VideoError with one line."""
    with named(path):
        file = check_file(path)
        try:
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                limits.check_size(*image.size)
                return Measured(image.height, image.width)
        except (VideoError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise anything on damaged files
            text = text_kind(file)
            if text is not None:
                raise VideoError(f"is no readable image (it is {text}); give a picture") from None
            raise VideoError(f"is no readable image ({one_line(error)}); check the file or re-encode it") from None
