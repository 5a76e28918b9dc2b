"""How to get at the frames of one stream: all at once, by seeking, or by decoding everything twice."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import av
import numpy as np

from jvlmm.video.container import open_container, open_stream
from jvlmm.video.frames import MissingFrameError, NumberedFrames, seek_frames
from jvlmm.video.limits import Limits
from jvlmm.video.timeline import Timeline, scan_frames, scan_packets

SMALL_VIDEO = 2**23  # pixels over all frames: such a video is decoded whole, in one pass
HIDDEN_FRAMES = ("vp8", "vp9", "av1")  # codecs in which a packet may show no frame


@dataclass(frozen=True)
class Source:
    """A timeline, and a function that yields (number, frame) for the frame numbers asked for, in increasing order."""

    timeline: Timeline
    frames: Callable[[np.ndarray], NumberedFrames]


def quick_source(container: av.container.InputContainer, stream: av.VideoStream) -> Source | None:
    """The cheapest source the file allows, at the start of the file; None where its packets do not tell the times."""
    small = read_small(container, stream)
    if small is not None:
        return Source(scan_frames(small, stream), lambda _: enumerate(small))
    timeline = scan_packets(container, stream)
    return timeline and Source(timeline, partial(seek_frames, container, stream, timeline))


@contextmanager
def exhaustive_source(
    path: str | os.PathLike[str], limits: Limits, index: int | None, least: int = 0
) -> Iterator[Source]:
    """Decode every frame once for the times, and once more for the pictures; the file need not be seekable.

    Raises VideoError where fewer than `least` frames come.
    """
    packets: list[int] = []
    with open_container(path) as container:
        stream = open_stream(container, limits, index)
        # An AVI frame that is lost would move the times of all after it; Xvid's packets hold two frames or none.
        counted = (
            container.format.name == "avi" and not hides_frames(stream) and "mpeg4" not in stream.codec_context.name
        )
        timeline = scan_frames(decode_all(container, stream, packets), stream)
        least = max(least, len(packets), stream.frames) if counted else least
    if len(timeline) < least:
        raise MissingFrameError(f"{len(timeline)} of {least} frames can be decoded")
    with open_container(path) as container:
        stream = open_stream(container, limits, index)
        yield Source(timeline, lambda _: enumerate(container.decode(stream)))


def decode_all(
    container: av.container.InputContainer, stream: av.VideoStream, packets: list[int]
) -> Iterator[av.VideoFrame]:
    """All frames in the decoder's order; the sizes of the packets they come from are added to a list."""
    for packet in container.demux(stream):
        if packet.size:
            packets.append(packet.size)
        yield from packet.decode()


def read_small(container: av.container.InputContainer, stream: av.VideoStream) -> list[av.VideoFrame] | None:
    """All frames of a video that its header tells to be small and to hold as many; else None."""
    context = stream.codec_context
    if not 0 < stream.frames * context.width * context.height <= SMALL_VIDEO:
        return None
    frames: list[av.VideoFrame] = []
    room = SMALL_VIDEO
    for frame in container.decode(stream):
        room -= frame.width * frame.height
        if room < 0 or len(frames) == stream.frames:  # the header lies: keep no more of what may be large
            break
        frames.append(frame)
    else:
        if len(frames) == stream.frames:
            return frames
    container.seek(0)
    return None


def hides_frames(stream: av.VideoStream) -> bool:
    """Whether packets without a frame are normal in this codec."""
    return any(name in stream.codec_context.name for name in HIDDEN_FRAMES)
