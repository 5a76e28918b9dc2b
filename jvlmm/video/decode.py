"""Files → frames, in the calling process. For files one does not trust use `workers.Decoder`."""

import os
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from jvlmm.errors import VideoError
from jvlmm.video.clip import Clip
from jvlmm.video.container import check_file, choose_stream, named, open_container
from jvlmm.video.limits import Limits
from jvlmm.video.orientation import Orientation, frame_orientation
from jvlmm.video.sampling import SAMPLERS, FrameOptions
from jvlmm.video.timeline import Timeline, scan_frames, scan_packets

SMALL_VIDEO = 2**23  # pixels over all frames: such a video is decoded whole, in one pass
SEEK_GAIN = 8  # seek only where it spares decoding more frames than this
HIDDEN_FRAMES = {"vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9", "libaom-av1"}  # packets may show nothing

NumberedFrames = Iterable[tuple[int, av.VideoFrame]]


class _MissingFrames(Exception):
    """Some packets gave no frame."""


def decode_video(
    path: str | os.PathLike[str],
    frames: FrameOptions = FrameOptions(),
    limits: Limits = Limits(),
    start: float | None = None,
    end: float | None = None,
    stream: int | None = None,
) -> Clip:
    """Sample the frames shown between `start` and `end` seconds of a video (all of it by default).

    `stream` is the number of a video stream in the file; by default the best one is taken. Frame numbers and times
    are those of the whole stream, in presentation order; the first frame is at 0 s. Raises VideoError with one line.
    """
    with named(path), open_container(path) as container:
        video = choose_stream(container, stream)
        limits.check_size(video.codec_context.width, video.codec_context.height)
        video.codec_context.thread_count = 1
        decoded = read_small(container, video)
        timeline = scan_frames([f.pts for f in decoded], video) if decoded else scan_packets(container, video)
        if timeline is not None:
            indices, fps = sample(timeline, frames, limits, start, end)
            numbered = enumerate(decoded) if decoded else seek_frames(container, video, timeline, indices)
            try:
                return Clip(pictures(numbered, indices), timeline.times[indices], indices, timeline.duration, fps)
            except _MissingFrames as missing:
                if video.codec_context.name not in HIDDEN_FRAMES:
                    raise VideoError(f"is damaged: {missing}; fetch the file again or re-encode it") from None
        timeline = scan_frames([f.pts for f in all_frames(container, video)], video)
        indices, fps = sample(timeline, frames, limits, start, end)
        numbered = enumerate(all_frames(container, video))
        return Clip(pictures(numbered, indices), timeline.times[indices], indices, timeline.duration, fps)


def decode_image(path: str | os.PathLike[str], limits: Limits = Limits()) -> Clip:
    """Read a still image, upright by its EXIF flag and as RGB: a clip of one frame at time 0."""
    with named(path):
        file = check_file(path)
        try:
            with Image.open(file) as image:
                limits.check_size(*image.size)
                picture = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except VideoError:
            raise
        except Image.DecompressionBombError:
            raise VideoError("has too many pixels; scale it down") from None
        except Exception as error:  # Pillow's plugins raise anything on damaged files
            raise VideoError(f"is no readable image ({_one_line(error)}); check the file or re-encode it") from None
        return Clip(picture[None], np.zeros(1), np.zeros(1, np.int64), duration=0.0)


def sample(
    timeline: Timeline, frames: FrameOptions, limits: Limits, start: float | None, end: float | None
) -> tuple[np.ndarray, float]:
    """Frame numbers int64 [n] to take, and their rate in frames per second."""
    first, stop = timeline.within(start, end)
    if (start is not None or end is not None) and stop - first < 2:
        raise VideoError(
            f"shows {stop - first} frames between {start} and {end} s of {timeline.duration:.2f} s; widen the span"
        )
    indices = first + SAMPLERS[frames.sampler](stop - first, timeline.fps, frames)
    limits.check_count(len(indices))
    return indices, len(indices) / (stop - first) * timeline.fps


def read_small(container: av.container.InputContainer, stream: av.VideoStream) -> list[av.VideoFrame] | None:
    """All frames of a video whose header tells that it is small, else None."""
    context = stream.codec_context
    if not 0 < stream.frames * context.width * context.height <= SMALL_VIDEO:
        return None
    frames = list(container.decode(stream))
    if len(frames) < stream.frames:  # cut, damaged or edited: the packets tell which
        container.seek(0)
        return None
    return frames


def all_frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Every frame from the beginning."""
    container.seek(0)
    stream.codec_context.flush_buffers()
    yield from container.decode(stream)


def seek_frames(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, wanted: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Numbered frames that contain all of `wanted` (int64, increasing), skipping what a keyframe lets us skip."""
    position = -SEEK_GAIN - 1  # number of the last frame decoded
    remaining = list(wanted[::-1])
    while remaining:
        key = timeline.keyframes[np.searchsorted(timeline.keyframes, remaining[-1], "right") - 1]
        seek_to(container, stream, timeline, int(key))
        position = int(key)
        for frame in container.decode(stream):
            number = int(np.searchsorted(timeline.pts, frame.pts))
            yield number, frame
            while remaining and remaining[-1] <= number:
                remaining.pop()
            if not remaining:
                return
            position = number
            next_key = timeline.keyframes[np.searchsorted(timeline.keyframes, remaining[-1], "right") - 1]
            if next_key > position + SEEK_GAIN:
                break
        else:
            return


def seek_to(container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, number: int) -> None:
    container.seek(int(timeline.pts[number]), stream=stream)


def pictures(numbered: NumberedFrames, wanted: np.ndarray) -> np.ndarray:
    """Convert the frames numbered `wanted` (increasing) to upright RGB: uint8 [len(wanted), H, W, 3]."""
    reformatter = VideoReformatter()
    place = {int(number): at for at, number in enumerate(wanted)}
    result: np.ndarray | None = None
    orientation = Orientation()
    for number, frame in numbered:
        at = place.pop(number, None)
        if at is None:
            continue
        if frame.is_corrupt:
            raise _MissingFrames(f"frame {number} is corrupt")
        rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        if result is None:
            orientation = frame_orientation(frame)
            result = np.empty((len(wanted), *orientation.size(*rgb.shape[:2]), 3), np.uint8)
        result[at] = orientation.apply(rgb)
        if not place:
            return result
    raise _MissingFrames(f"frame {min(place)} cannot be decoded")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
