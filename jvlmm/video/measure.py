"""What a plan needs to know of a file: its size and the times of the frames asked for, from its packets alone."""

import os
from contextlib import suppress

from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video.container import check_file, named, one_line, open_container, open_stream
from jvlmm.video.decode import sample
from jvlmm.video.fitting import Measured
from jvlmm.video.frames import MissingFrameError
from jvlmm.video.limits import DEFAULT_LIMITS, Limits
from jvlmm.video.sampling import DEFAULT_FRAMES, FrameOptions
from jvlmm.video.source import exhaustive_source
from jvlmm.video.timeline import scan_packets


def measure_video(
    path: str | os.PathLike[str],
    frames: FrameOptions = DEFAULT_FRAMES,
    limits: Limits = DEFAULT_LIMITS,
    start: float | None = None,
    end: float | None = None,
) -> Measured:
    """Measure a video; its frames are decoded only where its packets do not tell their times.

    Raises VideoError as decoding does.
    """
    with named(path):
        timeline = None
        with open_container(path) as container, suppress(MissingFrameError):
            stream = open_stream(container, limits)
            height, width = stream.codec_context.height, stream.codec_context.width
            timeline = scan_packets(container, stream)
        if timeline is None:
            with exhaustive_source(path, limits, None) as source:
                timeline = source.timeline
        indices, _ = sample(timeline, frames, start, end)
        return Measured(height, width, tuple(timeline.times[indices].tolist()))


def measure_image(path: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> Measured:
    """Measure a still image from its header. Raises VideoError with one line."""
    with named(path):
        file = check_file(path)
        try:
            with Image.open(file) as image:
                limits.check_size(*image.size)
                return Measured(image.height, image.width)
        except VideoError:
            raise
        except Exception as error:  # Pillow's plugins raise anything on damaged files
            raise VideoError(f"is no readable image ({one_line(error)}); check the file or re-encode it") from None
