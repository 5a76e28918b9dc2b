"""One example as the model reads it, before batching."""

from dataclasses import dataclass

import numpy as np

from jvlmm.data.coordinates import Coordinates, Shown
from jvlmm.video.clip import Patches


@dataclass(frozen=True)
class Sequence:
    """Tokens of one example with their positions, and the patches its placeholders stand for.

    L tokens. `visual_index` counts merged features over all `patches` in the order of the placeholders
    (raster order t, h, w inside each); -1 marks text.
    """

    id: str
    tokens: np.ndarray  # int32 [L]
    positions: np.ndarray  # int32 [3, L], temporal, height, width
    loss_mask: np.ndarray  # bool [L], True on the tokens to learn
    visual_index: np.ndarray  # int32 [L]
    patches: tuple[Patches, ...]  # in the order of the placeholders
    next_position: int  # of the first token generated after the last one here
    shown: tuple[Shown, ...] = ()  # the media as the model sees them, in the order of `patches`
    coordinates: Coordinates = "shown"  # of the boxes of an answer to it

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def num_patches(self) -> int:
        return sum(len(p.pixels) for p in self.patches)

    @property
    def grids(self) -> tuple[tuple[int, int, int], ...]:
        """(t, h, w) of each medium, in patches."""
        return tuple(p.grid for p in self.patches)
