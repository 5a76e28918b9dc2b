"""Rotation and mirror flags of a video: the display matrix."""

from dataclasses import dataclass

import av
import numpy as np


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways a frame can be laid on its side: transpose first, then the flips."""

    transposed: bool = False
    flipped_x: bool = False
    flipped_y: bool = False

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """Turn a stored frame [H, W, C] upright; a view, [W, H, C] where it is transposed."""
        if self.transposed:
            frame = frame.transpose(1, 0, 2)
        return frame[:: -1 if self.flipped_y else 1, :: -1 if self.flipped_x else 1]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the upright frame."""
        return (width, height) if self.transposed else (height, width)

    @property
    def degrees(self) -> int:
        """Clockwise turn that brings the stored frame upright, mirroring apart: 0, 90, 180 or 270."""
        if self.transposed:
            return 90 if self.flipped_x else 270
        return 180 if self.flipped_y else 0

    @property
    def mirrored(self) -> bool:
        return (self.transposed + self.flipped_x + self.flipped_y) % 2 == 1


def frame_orientation(frame: av.VideoFrame) -> Orientation:
    """Read the display matrix of a decoded frame, to the nearest quarter turn.

    The matrix maps a stored pixel to x' = a·x + c·y, y' = b·x + d·y (ISO/IEC 14496-12, 8.3.2; libavutil/display.h).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(np.int64)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transposed=True, flipped_x=bool(c < 0), flipped_y=bool(b < 0))
    return Orientation(flipped_x=bool(a < 0), flipped_y=bool(d < 0))
