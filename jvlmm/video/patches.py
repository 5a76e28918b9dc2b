"""Frames → resized frames → flattened patches, byte for byte what transformers' Pillow image processor makes."""

import numpy as np
from PIL import Image

from jvlmm.video.clip import Clip, Patches


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 [T, H, W, 3] to uint8 [T, h, w, 3] with Pillow's antialiased bicubic filter; size is (h, w)."""
    height, width = size
    if frames.shape[1:3] == (height, width):
        return frames
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for target, frame in zip(resized, frames, strict=True):
        target[...] = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return resized


def flatten_patches(
    frames: np.ndarray, patch_size: int = 14, temporal_patch_size: int = 2, merge_size: int = 2
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut uint8 [T, H, W, 3] into (uint8 [N, 3 * temporal_patch * patch * patch], grid (t, h, w)).

    The last frame repeats until T is a multiple of `temporal_patch_size`. Rows run over time, then over blocks of
    merge x merge patches in raster order, then over the patches of a block; columns over channel, frame, y, x.
    H and W must be multiples of patch_size * merge_size (ValueError).
    """
    missing = -len(frames) % temporal_patch_size
    if missing:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    total, height, width, channels = frames.shape
    if height % (patch_size * merge_size) or width % (patch_size * merge_size):
        raise ValueError(f"frames of {width}x{height} pixels are no multiple of {patch_size * merge_size}")
    grid = (total // temporal_patch_size, height // patch_size, width // patch_size)
    blocks = frames.reshape(
        grid[0],
        temporal_patch_size,
        grid[1] // merge_size,
        merge_size,
        patch_size,
        grid[2] // merge_size,
        merge_size,
        patch_size,
        channels,
    )
    ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # t, block y, block x, y, x, channel, frame, pixel y, pixel x
    return ordered.reshape(grid[0] * grid[1] * grid[2], -1), grid


def to_patches(
    clip: Clip,
    size: tuple[int, int],
    patch_size: int = 14,
    temporal_patch_size: int = 2,
    merge_size: int = 2,
    fps: float | None = None,
) -> Patches:
    """Resize a clip to `size` (h, w) and cut it into patches.

    `fps` is the rate of the frames in the clip, by default `clip.fps`; with it a temporal patch lasts
    temporal_patch_size / fps seconds. An image (clip.fps = 0) has `seconds_per_grid` 0.
    """
    pixels, grid = flatten_patches(resize_frames(clip.frames, size), patch_size, temporal_patch_size, merge_size)
    rate = clip.fps if fps is None else fps
    seconds = temporal_patch_size / rate if rate > 0 else 0.0
    return Patches(
        pixels=pixels,
        grid=grid,
        seconds_per_grid=seconds,
        times=clip.times,
        indices=clip.indices,
        file_size=clip.file_size if any(clip.file_size) else clip.frames.shape[1:3],
        size=tuple(size),
    )
