"""Packets → the frames one wants, upright and as RGB."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from jvlmm.errors import VideoError
from jvlmm.video.background import on_white
from jvlmm.video.limits import Limits
from jvlmm.video.orientation import Orientation, frame_orientation
from jvlmm.video.patches import resize_frames
from jvlmm.video.timeline import Timeline

SEEK_GAIN = 8  # seek only where it spares decoding more frames than this
REORDERING = 32  # a frame that has not come so many frames after its turn will not come

NumberedFrames = Iterable[tuple[int, av.VideoFrame]]


class MissingFrameError(VideoError):
    """A frame that the packets promise does not come out of the decoder whole."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"is damaged: {reason}; fetch the file again or re-encode it")


def seek_frames(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, wanted: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame) for each of `wanted` (int64, increasing), seeking to keyframes where that spares work.

    Raises MissingFrameError where a frame does not come whole even when decoding from the first keyframe.
    """
    queue = deque(int(number) for number in wanted)
    missing, steps_back = set(queue), 0
    pts = {int(p): number for number, p in enumerate(timeline.pts)}
    while queue:
        target = queue[0]
        key = max(0, timeline.key_before(target) - steps_back)
        seek_to_keyframe(container, stream, timeline, key)
        for frame in decode_needed(container, stream, {int(timeline.pts[n]) for n in missing}):
            number = pts.get(frame.pts, -1)
            if frame.is_corrupt and number >= timeline.keyframes[key]:
                break  # what follows may be built on it
            if number in missing:
                missing.remove(number)
                yield number, frame
            while queue and queue[0] not in missing:
                queue.popleft()
            if not queue or number > queue[0] + REORDERING:
                break
            if timeline.keyframes[timeline.key_before(queue[0])] > number + SEEK_GAIN:
                break
        if queue and queue[0] == target:  # the seek went too far: start from an earlier keyframe
            if key == 0:
                raise MissingFrameError(f"frame {target} cannot be decoded")
            steps_back = 2 * steps_back + 1
        else:
            steps_back = 0


def seek_to_keyframe(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, key: int
) -> None:
    """Go to or before the keyframe at a position of `timeline.keyframes`; the first one is the start of the file."""
    if key == 0:
        container.seek(0)
    else:
        container.seek(int(timeline.pts[timeline.keyframes[key]]), stream=stream)


def decode_needed(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: set[int]
) -> Iterator[av.VideoFrame]:
    """Decode on from the current position; frames no other frame refers to are left out unless `wanted` by time.

    Raises MissingFrameError where frames come out of order: then packets and frames disagree about times.
    """
    context, last = stream.codec_context, None
    for packet in container.demux(stream):
        context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts is None or (last is not None and frame.pts <= last):
                raise MissingFrameError("its frames come out of order")
            last = frame.pts
            yield frame


def pictures(
    numbered: NumberedFrames,
    wanted: np.ndarray,
    limits: Limits,
    fit: Callable[[int, int], tuple[int, int]] | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Convert the frames numbered `wanted` (increasing) to upright RGB: uint8 [len(wanted), H, W, 3].

    Returned with the (height, width) that the frames have upright, before any resizing. `fit` maps it to the size the
    frames are resized to. Raises MissingFrameError where a frame does not come or one before it is damaged, VideoError
    where the result would be larger than `limits`.
    """
    place = {int(number): at for at, number in enumerate(wanted)}
    reformatter, orientation = VideoReformatter(), Orientation()
    file_size, size, result = (0, 0), (0, 0), np.empty(0, np.uint8)
    for number, frame in numbered:
        if frame.is_corrupt:  # frames after it may be built on it
            raise MissingFrameError(f"frame {number} is corrupt")
        at = place.pop(number, None)
        if at is None:
            continue
        limits.check_size(frame.width, frame.height)
        rgb = to_rgb(reformatter, frame)
        if not result.size:
            orientation = frame_orientation(frame)
            file_size = orientation.size(*rgb.shape[:2])
            size = fit(*file_size) if fit else file_size
            limits.check_clip(len(wanted), *size)
            result = np.empty((len(wanted), *size, 3), np.uint8)
        result[at] = resize_frames(orientation.apply(rgb)[None], size)[0]
        if not place:
            return result, file_size
    raise MissingFrameError(f"frame {min(place)} cannot be decoded")


def to_rgb(reformatter: VideoReformatter, frame: av.VideoFrame) -> np.ndarray:
    """The pixels of a frame as stored: uint8 [H, W, 3]. What is transparent lies on white."""
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        return on_white(reformatter.reformat(frame, format="rgba", threads=1).to_ndarray())
    return reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
