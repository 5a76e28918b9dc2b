"""When each frame of a video is shown: read from the packets, or from decoded frames where packets do not say."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from jvlmm.errors import VideoError

CUT_ANYWHERE = ("mpegts", "mpeg")  # recordings: they begin inside a group of pictures, and no header tells their end


@dataclass(frozen=True)
class Timeline:
    """Presentation times of all frames of one video stream."""

    pts: np.ndarray  # int64 [T], increasing, in units of time_base
    time_base: Fraction  # seconds per unit
    keyframes: np.ndarray  # int64 [K], numbers of the frames at which decoding can start
    fps: float  # average frames per second
    duration: float  # seconds from the first frame to the end of the last

    @property
    def times(self) -> np.ndarray:
        """float64 [T], seconds; the first frame is at 0."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    def __len__(self) -> int:
        return len(self.pts)

    def key_before(self, number: int) -> int:
        """Position in `keyframes` of the last one at or before a frame."""
        return max(int(np.searchsorted(self.keyframes, number, "right")) - 1, 0)

    def within(self, start: float | None, end: float | None) -> tuple[int, int]:
        """Numbers [first, stop) of the frames shown from `start` to `end` seconds, both included."""
        first = 0 if start is None else int(np.searchsorted(self.times, start - 1e-6, "left"))
        stop = len(self) if end is None else int(np.searchsorted(self.times, end + 1e-6, "right"))
        return first, max(first, stop)


def scan_packets(container: av.container.InputContainer, stream: av.VideoStream) -> Timeline | None:
    """Timeline from one pass over the packets; None where they carry no distinct times. VideoError where it is cut."""
    stamps: list[int | None] = []
    keys: list[int | None] = []
    packets = last_duration = 0
    cut_anywhere = container.format.name in CUT_ANYWHERE
    for packet in container.demux(stream):
        packets += packet.size > 0
        if packet.size == 0 or packet.is_discard or (cut_anywhere and not keys and not packet.is_keyframe):
            continue
        if packet.is_corrupt:
            raise VideoError("is damaged: a packet is not whole; fetch the file again or re-encode it")
        stamps.append(packet.pts)
        last_duration = packet.duration or last_duration
        if packet.is_keyframe:
            keys.append(packet.pts)
    if not packets:
        raise VideoError("has no frames; check the file or re-encode it")
    invented = container.format.name == "avi" and stream.codec_context.has_b_frames  # AVI stores no presentation times
    if invented or not stamps or None in stamps or len(set(stamps)) != len(stamps):
        return None
    if cut_anywhere:  # pictures shown before the first key frame need those before it, which are not there
        stamps = [stamp for stamp in stamps if stamp >= keys[0]]
    pts = np.array(sorted(stamps), np.int64)
    keyframes = np.searchsorted(pts, np.array(sorted(keys) or pts[:1], np.int64))
    timeline = build_timeline(stream, pts, keyframes, last_duration)
    check_complete(container, stream, timeline, packets)
    return timeline


def scan_frames(frames: Iterable[av.VideoFrame], stream: av.VideoStream) -> Timeline:
    """Timeline from all decoded frames, in the order the decoder gave them."""
    stamps, last_duration = [], 0
    for frame in frames:
        stamps.append(frame.pts)
        last_duration = frame.duration
    if not stamps:
        raise VideoError("has no frames that can be decoded; check the file or re-encode it")
    base = stream.time_base or Fraction(1, 1000)
    pts = np.array([-1 if p is None else p for p in stamps], np.int64)
    if None in stamps or np.any(np.diff(pts) <= 0):
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        pts = np.rint(np.arange(len(stamps)) / (rate * float(base))).astype(np.int64)
    return build_timeline(stream, pts, np.zeros(1, np.int64), last_duration)


def build_timeline(stream: av.VideoStream, pts: np.ndarray, keyframes: np.ndarray, last_duration: int = 0) -> Timeline:
    """Sorted presentation times with their average rate and the duration."""
    base = stream.time_base or Fraction(1, 1000)
    fps = frame_rate(stream, pts)
    tail = last_duration * float(base) or 1 / fps
    return Timeline(pts, base, keyframes, fps, float((pts[-1] - pts[0]) * base) + tail)


def frame_rate(stream: av.VideoStream, pts: np.ndarray) -> float:
    """Average frames per second: the header's, which is exact, unless the times contradict it by over a frame."""
    stated = float(stream.average_rate or stream.guessed_rate or 0)
    span = float((pts[-1] - pts[0]) * (stream.time_base or Fraction(1, 1000)))
    measured = (len(pts) - 1) / span if span > 0 else 0.0
    if stated and abs(stated * span - (len(pts) - 1)) <= 1.5:
        return stated
    return measured or stated or 25.0


def check_complete(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, packets: int
) -> None:
    """Raise VideoError where the header promises frames that the file no longer holds."""
    if container.format.name in CUT_ANYWHERE:
        return
    promised = promised_duration(container, stream, float(timeline.pts[0] * timeline.time_base))
    slack = 2 / timeline.fps + 0.1
    fewer = stream.frames == 0 or packets < stream.frames
    if fewer and promised is not None and timeline.duration < promised - slack:
        raise VideoError(
            f"is cut short: {timeline.duration:.2f} of {promised:.2f} s are there; fetch the file again or re-encode it"
        )


def promised_duration(
    container: av.container.InputContainer, stream: av.stream.Stream, start: float | None = None
) -> float | None:
    """Seconds the header gives this stream; None where it does not say.

    Matroska tells when a stream ends. `start` is when it begins, in seconds of the file's clock; by default as FFmpeg
    guesses it from the first packets.
    """
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = (float(part) for part in tag.split(":"))
        told = hours * 3600 + minutes * 60 + seconds
    except ValueError:
        if len(container.streams) > 1 or container.duration is None:
            return None
        told = container.duration / av.time_base
    if "matroska" not in container.format.name:
        return told
    if start is None:
        start = float((stream.start_time or 0) * (stream.time_base or 0))
    return told - start
