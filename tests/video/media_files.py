"""Small media files written for the tests: frames whose picture tells their number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 12  # grey levels between two frames


def numbered_frames(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [count, H, W, 3]: frame i is grey level 10 + STEP·i (wrapping), with a white top left quarter."""
    frames = np.empty((count, height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[...] = 10 + STEP * (index % 16)
        frame[: height // 2, : width // 2] = 250
    return frames


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Number, modulo 16, that the lower right corner of each upright frame shows."""
    corner = frames[:, -8:, -8:].mean(axis=(1, 2, 3))
    return np.rint((corner - 10) / STEP).astype(int).tolist()


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    rate: int = 10,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    milliseconds: Sequence[int] | None = None,
    rotation: int | None = None,
    mirrored: bool = False,
    options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
) -> Path:
    """Encode uint8 [T, H, W, 3]; `milliseconds` gives each frame's time, `rotation` is in degrees counterclockwise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.options = options or {}
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None or mirrored:
            stream.set_display_rotation(rotation or 0, hflip=mirrored)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if tags:
                frame = frame.reformat(
                    format=pixel_format, dst_colorspace=tags["colorspace"], dst_color_range=tags["color_range"]
                )
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path, seconds: float = 0.5) -> Path:
    """A tone without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        samples = np.sin(np.arange(int(16_000 * seconds)) / 10).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def claim_samples(path: Path, count: int) -> Path:
    """Make a small MP4 of one chunk claim so many samples: its tables are of constant size, however many they tell."""
    data = bytearray(path.read_bytes())

    def put(box: bytes, offset: int, value: int) -> None:
        at = data.index(box) + 4 + offset  # after the box's name: version and flags, then its fields
        data[at : at + 4] = value.to_bytes(4, "big")

    put(b"stts", 8, count)
    put(b"stsz", 4, 1)  # bytes of every sample
    put(b"stsz", 8, count)
    put(b"stsc", 12, count)  # samples of the first chunk
    path.write_bytes(data)
    return path
