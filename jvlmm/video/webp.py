"""Animated WebP as a video: FFmpeg does not read it, Pillow does (RFC 9649)."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video.frames import NumberedFrames
from jvlmm.video.limits import Limits
from jvlmm.video.source import Source
from jvlmm.video.timeline import Timeline

ANIMATED = 0x02  # flag of the VP8X chunk
REMEDY = "fetch the file again or convert it to MP4"


@dataclass(frozen=True)
class Animation:
    """What the chunks of an animated WebP say."""

    width: int
    height: int
    durations: tuple[int, ...]  # milliseconds of each frame

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return 1000 * len(self.durations) / sum(self.durations)


def read_animation(file: Path) -> Animation | None:
    """The frames of an animated WebP; None for any other file. VideoError where its chunks do not fill it."""
    with file.open("rb") as stream:
        head = stream.read(30)
        animated = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 30 and head[20] & ANIMATED
        if not animated:
            return None
        size = int.from_bytes(head[4:8], "little") + 8
        if file.stat().st_size < size:
            raise VideoError(f"is cut short: {file.stat().st_size} of {size} bytes are there; {REMEDY}")
        durations, at = [], 12
        while at < size:
            stream.seek(at)
            chunk = stream.read(24)
            length = int.from_bytes(chunk[4:8], "little")
            if at + 8 + length > size or not chunk[:4].strip().isalnum():
                raise VideoError(f"is damaged: no chunk of WebP begins at byte {at}; {REMEDY}")
            if chunk[:4] == b"ANMF":
                durations.append(int.from_bytes(chunk[20:23], "little"))
            at += 8 + length + length % 2
    if not durations:
        raise VideoError(f"has no frames; {REMEDY}")
    # Browsers show frames without a duration for a tenth of a second.
    shown = tuple(duration or 100 for duration in durations)
    width, height = (int.from_bytes(head[start : start + 3], "little") + 1 for start in (24, 27))
    return Animation(width, height, shown)


def webp_source(file: Path, animation: Animation, limits: Limits) -> Source:
    """The frames of an animated WebP, decoded one after another up to the last that is asked for."""
    limits.check_size(animation.width, animation.height)
    pts = np.cumsum((0, *animation.durations[:-1])).astype(np.int64)
    timeline = Timeline(
        pts=pts,
        time_base=Fraction(1, 1000),
        keyframes=np.zeros(1, np.int64),
        fps=animation.fps,
        duration=sum(animation.durations) / 1000,
    )
    return Source(timeline, lambda wanted: _frames(file, wanted))


def _frames(file: Path, wanted: np.ndarray) -> NumberedFrames:
    numbers = {int(number) for number in wanted}
    return ((number, frame) for number, frame in enumerate(_decoded(file, int(max(wanted)))) if number in numbers)


def _decoded(file: Path, last: int) -> Iterator[av.VideoFrame]:
    number = 0
    try:
        with Image.open(file, formats=["WEBP"]) as image:
            for number in range(last + 1):
                image.seek(number)
                yield av.VideoFrame.from_ndarray(np.asarray(image.convert("RGBA")), format="rgba")
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise VideoError(f"is damaged: frame {number} cannot be decoded; {REMEDY}") from error
