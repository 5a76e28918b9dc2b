"""Clips of all containers, ways to damage them, and what FFmpeg says of the result when it is told to be strict."""

from dataclasses import dataclass
from pathlib import Path

import av
import av.logging
import numpy as np
from media_files import write_video
from PIL import Image

from jvlmm.errors import VideoError
from jvlmm.video.clip import Clip
from jvlmm.video.sampling import FrameOptions
from jvlmm.video.workers import Decoder

FRAMES = FrameOptions(num_frames=8)
KINDS = ("cut", "zeroed", "replaced", "inserted", "removed")
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}


@dataclass(frozen=True)
class Reading:
    """All frames of a file and their times, and the first error on the way, if there was one."""

    times: list[float]
    frames: list[np.ndarray]
    error: str | None


def moving_picture(count: int, height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [count, H, W, 3]: a textured square on its way over a textured ground."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(40, 200, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    square = rng.integers(0, 255, (24, 24, 3), np.uint8)
    frames = np.repeat(ground[None], count, axis=0)
    for number, frame in enumerate(frames):
        x, y = (number * 3) % (width - 24), (number * 2) % (height - 24)
        frame[y : y + 24, x : x + 24] = np.roll(square, number, axis=0)
    return frames


def whole_clips(folder: Path) -> list[Path]:
    """A clip of each container and codec: 100 frames of 4 s, with key frames every second."""
    pictures = moving_picture(100, 96, 128, seed=0)
    h264 = {"g": "25", "bf": "2", "threads": "1"}
    vpx = {"g": "25", "deadline": "realtime", "cpu-used": "8"}
    made = [
        write_video(folder / "h264.mp4", pictures, rate=25, options={**h264, "movflags": "+faststart"}),
        write_video(folder / "h264.mkv", pictures, rate=25, options=h264),
        write_video(folder / "vp8.webm", pictures, rate=25, codec="libvpx", options=vpx),
        write_video(folder / "vp9.webm", pictures, rate=25, codec="libvpx-vp9", options=vpx),
        write_video(folder / "mpeg4.avi", pictures, rate=25, codec="mpeg4", options={"g": "25"}),
        write_video(folder / "h264.avi", pictures, rate=25, options=h264),
        write_video(folder / "h264.ts", pictures, rate=25, options=h264),
        write_video(folder / "mpeg2.ts", pictures, rate=25, codec="mpeg2video", options={"g": "25"}),
    ]
    first, *rest = (Image.fromarray(picture).quantize(64) for picture in pictures)
    first.save(folder / "a.gif", save_all=True, append_images=rest, duration=40, loop=0)
    return [*made, folder / "a.gif"]


def damage(data: bytes, seed: int) -> tuple[str, bytes]:
    """One way to damage a file, chosen by a seed, and the result."""
    rng = np.random.default_rng(seed)
    kind = KINDS[int(rng.integers(len(KINDS)))]
    at = int(rng.integers(len(data) // 50, len(data)))
    size = min(int(2 ** rng.uniform(4, 15)), len(data) - at)  # 16 bytes to 32 kB
    if kind == "cut":
        return kind, data[:at]
    there = {"zeroed": bytes(size), "replaced": rng.bytes(size), "inserted": rng.bytes(size), "removed": b""}[kind]
    return f"{kind} {size}", data[:at] + there + data[at + (0 if kind == "inserted" else size) :]


def strict_reading(path: Path) -> Reading:
    """Decode a file from end to end; what FFmpeg logs as an error is one."""
    times, frames, error = [], [], None
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as said, av.open(str(path), options=STRICT) as container:
            stream = container.streams.best("video")
            stream.codec_context.options = STRICT
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    error = error or f"frame {len(times)} is corrupt"
                times.append(frame.time)
                frames.append(frame.to_ndarray(format="rgb24"))
        errors = [text.strip() for rank, _, text in said if rank <= av.logging.ERROR]
        error = error or (errors[0] if errors else None)
    except Exception as raised:  # whatever FFmpeg or PyAV makes of it
        error = f"{type(raised).__name__}: {raised}"
    finally:
        av.logging.set_level(level)
    if path.suffix == ".avi":  # it stores no times: frames are equally far apart
        return Reading([number / 25 for number in range(len(times))], frames, error)
    start = times[0] if times and times[0] is not None else 0.0
    return Reading([(time or 0.0) - start for time in times], frames, error)


def agrees(clip: Clip, reading: Reading) -> bool:
    """Whether a clip's frames are those of a reading at the same numbers, at the same times."""
    if clip.indices[-1] >= len(reading.frames):
        return False
    same = (np.array_equal(frame, reading.frames[at]) for at, frame in zip(clip.indices, clip.frames, strict=True))
    times = np.array(reading.times)[clip.indices]
    return bool(np.allclose(clip.times, times, atol=2e-3)) and all(same)


def verdict(decoder: Decoder, path: Path, original: Reading) -> tuple[str, str]:
    """What comes of a damaged file, and the reason: refused, whole, as FFmpeg reads it, or silent."""
    try:
        clip = decoder.video(path, FRAMES)
    except VideoError as error:
        reason = str(error)
        assert reason.startswith(f"{path}: "), reason
        assert "\n" not in reason
        if "s by the clock" in reason or "of processor time" in reason:
            return "hang", reason
        return "refused", reason.removeprefix(f"{path}: ")
    if agrees(clip, original) and len(original.frames) - 1 == clip.indices[-1]:
        return "whole", ""
    strict = strict_reading(path)
    if strict.error is None and agrees(clip, strict) and len(strict.frames) - 1 == clip.indices[-1]:
        return "as FFmpeg reads it", ""
    return (
        "silent",
        f"last {clip.indices[-1]} at {clip.times[-1]:.2f}; strict: {len(strict.frames)} frames, {strict.error}",
    )
