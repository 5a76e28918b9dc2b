"""What the video path hands on: frames with their times, and patches with their grid."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clip:
    """Decoded frames of one video, or of one image (T = 1, time 0)."""

    frames: np.ndarray  # uint8 [T, H, W, 3], upright, RGB
    times: np.ndarray  # float64 [T], presentation time in seconds from the start of the file
    indices: np.ndarray  # int64 [T], frame numbers in presentation order
    duration: float  # seconds of the whole video (0 for an image)
    fps: float = 0.0  # rate of the frames taken, over the part of the video they were taken from (0 for an image)
    file_size: tuple[int, int] = (0, 0)  # (height, width) of a frame of the file, upright, before resizing


@dataclass(frozen=True)
class Patches:
    """Flattened patches of one image or video in the order of transformers' Qwen2-VL processors.

    N = t·h·w of the grid; C·P = channels · temporal_patch · patch². Pixels stay bytes: rescaling and
    normalisation happen on the device, which moves a quarter of the data.
    """

    pixels: np.ndarray  # uint8 [N, C * temporal_patch * patch * patch]
    grid: tuple[int, int, int]  # (t, h, w) in patches
    seconds_per_grid: float  # seconds between two temporal patches; 0 for an image
    times: np.ndarray  # float64 [T], times of the frames used
    indices: np.ndarray  # int64 [T], indices of the frames used
    file_size: tuple[int, int] = (0, 0)  # (height, width) in pixels of the file's frames, upright; (0, 0): not known
    size: tuple[int, int] = (0, 0)  # (height, width) in pixels of the frames cut into patches
