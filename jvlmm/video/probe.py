"""What a media file says about itself."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import av
from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video.container import check_file, named, open_container, open_stream, video_streams
from jvlmm.video.content import IMAGE_FORMATS
from jvlmm.video.limits import DEFAULT_LIMITS, Limits
from jvlmm.video.orientation import Orientation, frame_orientation
from jvlmm.video.timeline import promised_duration
from jvlmm.video.webp import Animation, read_animation


@dataclass(frozen=True)
class StreamInfo:
    """One stream; fields that do not apply to its type are None."""

    index: int
    type: str  # video, audio, subtitle, …; "picture" for cover art
    codec: str | None
    width: int | None = None  # pixels as stored, before rotation
    height: int | None = None
    fps: float | None = None
    frames: int | None = None  # the header's count; None where it has none
    pixel_format: str | None = None
    duration: float | None = None  # seconds


@dataclass(frozen=True)
class MediaInfo:
    """A file, its streams, and the one that would be used."""

    path: str
    kind: str  # "video" or "image"
    format: str  # container or image format
    streams: tuple[StreamInfo, ...]
    stream: int  # index of the chosen stream
    width: int  # pixels, upright
    height: int
    rotation: int  # degrees clockwise that bring the stored frame upright
    mirrored: bool
    fps: float  # frames per second; 0 for an image
    frames: int | None  # the header's count; None where it has none
    duration: float | None  # seconds; 0 for an image, None where the header has none
    codec: str
    pixel_format: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready record."""
        return {**asdict(self), "streams": [asdict(stream) for stream in self.streams]}


def probe(path: str | os.PathLike[str], stream: int | None = None, limits: Limits = DEFAULT_LIMITS) -> MediaInfo:
    """Read the headers, and the first frame of the chosen stream for its rotation. Raises VideoError with one line."""
    with named(path):
        if is_still_image(path):
            return probe_image(path, limits)
        animation = read_animation(check_file(path))
        return probe_animation(path, animation, limits) if animation else probe_video(path, stream, limits)


def is_still_image(path: str | os.PathLike[str]) -> bool:
    """Whether Pillow knows the file as a picture that does not move."""
    try:
        with Image.open(check_file(path), formats=IMAGE_FORMATS) as image:
            return getattr(image, "n_frames", 1) == 1
    except VideoError:
        raise
    except Exception:  # not an image, or a damaged one: FFmpeg then says what is wrong
        return False


def probe_image(path: str | os.PathLike[str], limits: Limits) -> MediaInfo:
    """A still image, from its header."""
    with Image.open(path, formats=IMAGE_FORMATS) as image:
        limits.check_size(*image.size)
        orientation = EXIF_ORIENTATIONS.get(image.getexif().get(EXIF_ORIENTATION_TAG, 1), Orientation())
        stored, kind, mode = image.size, image.format or "image", image.mode
    height, width = orientation.size(stored[1], stored[0])
    codec = kind.lower()
    only = StreamInfo(0, "image", codec, *stored, pixel_format=mode)
    return MediaInfo(
        path=os.fspath(path),
        kind="image",
        format=codec,
        streams=(only,),
        stream=0,
        width=width,
        height=height,
        rotation=orientation.degrees,
        mirrored=orientation.mirrored,
        fps=0.0,
        frames=1,
        duration=0.0,
        codec=codec,
        pixel_format=mode,
    )


def probe_animation(path: str | os.PathLike[str], animation: Animation, limits: Limits) -> MediaInfo:
    """An animated WebP, from its chunks."""
    limits.check_size(animation.width, animation.height)
    only = StreamInfo(
        index=0,
        type="video",
        codec="webp",
        width=animation.width,
        height=animation.height,
        fps=animation.fps,
        frames=len(animation.durations),
        pixel_format="rgba",
        duration=sum(animation.durations) / 1000,
    )
    return MediaInfo(
        path=os.fspath(path),
        kind="video",
        format="webp",
        streams=(only,),
        stream=0,
        width=animation.width,
        height=animation.height,
        rotation=0,
        mirrored=False,
        fps=animation.fps,
        frames=len(animation.durations),
        duration=only.duration,
        codec="webp",
        pixel_format="rgba",
    )


EXIF_ORIENTATION_TAG = 0x0112
EXIF_ORIENTATIONS = {  # CIPA DC-008, tag Orientation: where the stored first row and column belong
    2: Orientation(flipped_x=True),
    3: Orientation(flipped_x=True, flipped_y=True),
    4: Orientation(flipped_y=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, flipped_x=True),
    7: Orientation(transposed=True, flipped_x=True, flipped_y=True),
    8: Orientation(transposed=True, flipped_y=True),
}


def probe_video(path: str | os.PathLike[str], stream: int | None, limits: Limits) -> MediaInfo:
    """A video, from its headers and first frame."""
    with open_container(path) as container:
        chosen = open_stream(container, limits, stream)
        moving = {s.index for s in video_streams(container)}
        streams = tuple(stream_info(container, s, s.index in moving) for s in container.streams)
        first = next(container.decode(chosen), None)
        if first is None:
            raise VideoError("has no frames that can be decoded; check the file or re-encode it")
        orientation = frame_orientation(first)
        height, width = orientation.size(first.height, first.width)
        return MediaInfo(
            path=os.fspath(path),
            kind="video",
            format=container.format.name,
            streams=streams,
            stream=chosen.index,
            width=width,
            height=height,
            rotation=orientation.degrees,
            mirrored=orientation.mirrored,
            fps=float(chosen.average_rate or chosen.guessed_rate or 0),
            frames=chosen.frames or None,
            duration=promised_duration(container, chosen),
            codec=chosen.codec_context.codec.canonical_name,
            pixel_format=first.format.name,
        )


def stream_info(container: av.container.InputContainer, stream: av.stream.Stream, moving: bool) -> StreamInfo:
    """One stream from its header."""
    context = stream.codec_context
    codec = context.codec.canonical_name if context is not None else None
    duration = promised_duration(container, stream)
    if stream.type != "video" or context is None:
        return StreamInfo(stream.index, stream.type, codec, duration=duration)
    return StreamInfo(
        index=stream.index,
        type="video" if moving else "picture",
        codec=codec,
        width=context.width,
        height=context.height,
        fps=float(stream.average_rate or stream.guessed_rate or 0),
        frames=stream.frames or None,
        pixel_format=context.pix_fmt,
        duration=duration,
    )
