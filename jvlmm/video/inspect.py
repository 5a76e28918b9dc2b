"""What the model would see of a file, for a person to read."""

import os
from typing import Any

from jvlmm.video.budget import DEFAULT_PIXELS, PixelOptions
from jvlmm.video.limits import DEFAULT_LIMITS, Limits
from jvlmm.video.sampling import DEFAULT_FRAMES, FrameOptions
from jvlmm.video.workers import Decoder


def inspect_media(
    path: str | os.PathLike[str],
    frames: FrameOptions = DEFAULT_FRAMES,
    pixels: PixelOptions = DEFAULT_PIXELS,
    limits: Limits = DEFAULT_LIMITS,
    start: float | None = None,
    end: float | None = None,
    stream: int | None = None,
) -> dict[str, Any]:
    """A JSON-ready record of a video or image: what it holds, and what would be used of it.

    Holds the fields of `probe.MediaInfo`, and under `used`: frame `indices` and `times` [s], `fps` of these frames,
    `height` and `width` after the pixel budget, `grid` (t, h, w) in patches, `visual_tokens` = t·h·w / 4 and
    `seconds_per_grid`. The frames are decoded, in a worker process, so that what is listed can be read. Raises
    VideoError with one line.
    """
    with Decoder(1, limits) as decoder:
        return decoder.describe(path, frames, pixels, start, end, stream)


def format_inspection(record: dict[str, Any]) -> str:
    """The record of `inspect_media` as lines of text."""
    used = record["used"]
    turned = f", turned {record['rotation']}° clockwise" if record["rotation"] else ""
    mirrored = ", mirrored" if record["mirrored"] else ""
    lines = [f"{record['path']}: {record['kind']} ({record['format']})"]
    lines += [_stream_line(stream, record["stream"]) for stream in record["streams"]]
    lines.append(f"  picture   {record['width']}x{record['height']} upright{turned}{mirrored}")
    if record["kind"] == "video":
        count = record["frames"] if record["frames"] is not None else "not in the header"
        lines.append(f"  duration  {record['duration']:.3f} s at {record['fps']:.3f} frames/s; frames: {count}")
        indices, times = used["indices"], used["times"]
        lines.append(f"  uses      {len(indices)} frames ({used['fps']:.3f} per second)")
        lines.append(f"  indices   {_shorten([str(i) for i in indices])}")
        lines.append(f"  times     {_shorten([f'{t:.2f}' for t in times])} s")
    grid = "x".join(str(n) for n in used["grid"])
    lines.append(f"  resized   {used['width']}x{used['height']}, grid (t, h, w) {grid}")
    lines.append(f"  tokens    {used['visual_tokens']} visual tokens")
    return "\n".join(lines)


def _stream_line(stream: dict[str, Any], chosen: int) -> str:
    parts = [stream["type"], stream["codec"] or "unknown codec"]
    if stream["width"]:
        parts += [f"{stream['width']}x{stream['height']}", stream["pixel_format"] or "unknown pixel format"]
    if stream["fps"]:
        parts.append(f"{stream['fps']:.3f} frames/s")
    if stream["duration"]:
        parts.append(f"{stream['duration']:.3f} s")
    return f"  stream {stream['index']}{'*' if stream['index'] == chosen else ' '} {', '.join(parts)}"


def _shorten(items: list[str], most: int = 16) -> str:
    return " ".join(items if len(items) <= most else [*items[: most - 1], "…", items[-1]])
