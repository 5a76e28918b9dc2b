"""A low-rank update of one stored tensor, as LoRA learns it."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LowRank:
    """`scale` · B A, to be added to a tensor that is stored as [outputs, inputs…]."""

    a: np.ndarray  # float32 [r, inputs]
    b: np.ndarray  # float32 [outputs, r]
    scale: float

    def added_to(self, block: np.ndarray, slices: tuple[slice, ...]) -> np.ndarray:
        """float32: a block of the stored tensor, cut out by `slices` of its leading axes, with the update added."""
        rows = self.b[slices[0]]
        columns = self.a if len(slices) == 1 else self.a[:, slices[1]]
        update = (self.scale * rows) @ columns
        return block.astype(np.float32) + update.reshape(block.shape)

    def fits(self, stored_shape: tuple[int, ...]) -> bool:
        """Whether a tensor of that shape can take it."""
        outputs, *inputs = stored_shape
        return (len(self.b), self.a.shape[1]) == (outputs, math.prod(inputs))
