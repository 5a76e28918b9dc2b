"""Scenes as pixels: antialiased shapes on a plain grey background, written as H.264 or PNG."""

from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from jvlmm.data.moving_shapes.options import STEP_SECONDS
from jvlmm.data.moving_shapes.scene import COLOURS, Scene

_SUPERSAMPLING = 4


@lru_cache(maxsize=512)
def stencil(kind: str, size: int) -> np.ndarray:
    """Opacity float32 [size, size, 1] of a shape that fills its box."""
    grid = (np.arange(size * _SUPERSAMPLING) + 0.5) / (size * _SUPERSAMPLING)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    inside = {
        "circle": (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25,
        "square": np.ones_like(x, bool),
        "triangle": np.abs(x - 0.5) <= y / 2,
        "cross": (np.abs(x - 0.5) <= 1 / 6) | (np.abs(y - 0.5) <= 1 / 6),
    }[kind]
    blocks = inside.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING)
    return blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]


def draw(scene: Scene, step: int) -> np.ndarray:
    """One state of a scene as a frame, uint8 [size, size, 3]."""
    frame = np.full((scene.size, scene.size, 3), scene.background, np.uint8)
    for shape in scene.shapes:
        box = shape.boxes[step]
        if box is None:
            continue
        x1, y1, x2, y2 = box
        opacity = stencil(shape.kind, x2 - x1)
        colour = np.asarray(COLOURS[shape.colour_at(step)], np.float32)
        region = frame[y1:y2, x1:x2]
        region[:] = np.rint(region * (1 - opacity) + colour * opacity)
    return frame


def write_media(scene: Scene, path: Path, fps: int, crf: int) -> None:
    """Write the scene as MP4 (several steps) or PNG (one step). Raises OSError where the file cannot be written."""
    if scene.is_image:
        _encode(path, "image2", "png", "rgb24", [draw(scene, 0)], 1, {"update": "1"}, {})
        return
    repeats = round(fps * STEP_SECONDS)
    frames = [frame for step in range(scene.steps) for frame in [draw(scene, step)] * repeats]
    codec_options = {"preset": "superfast", "crf": str(crf), "threads": "1"}
    _encode(path, "mp4", "libx264", "yuv420p", frames, fps, {}, codec_options)


def _encode(
    path: Path,
    container_format: str,
    codec: str,
    pixel_format: str,
    frames: list[np.ndarray],
    fps: int,
    container_options: dict[str, str],
    codec_options: dict[str, str],
) -> None:
    with av.open(str(path), "w", format=container_format, options=container_options) as container:
        stream = container.add_stream(codec, rate=fps, options=codec_options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
