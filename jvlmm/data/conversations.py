"""Several questions about the same media asked in one row, so that the media are encoded once for all of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import SupportsIndex

import numpy as np

from jvlmm.data.example import Example


class Conversations(Sequence):
    """Examples joined into conversations of at most `turns` questions about the same media.

    `seed` decides which question follows which. A conversation is its last question, with the ones before as
    `earlier`. The media of all rows are read once, to group them.
    """

    def __init__(self, rows: Sequence[Example], turns: int, seed: int = 0):
        self._rows = rows
        groups = defaultdict(list)
        for k in range(len(rows)):
            groups[rows[k].media].append(k)
        rng = np.random.default_rng(seed)
        self._members = [
            members[start : start + turns]
            for members in (rng.permutation(group).tolist() for group in groups.values())
            for start in range(0, len(members), turns)
        ]

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: SupportsIndex) -> Example:
        *earlier, last = (self._rows[k] for k in self._members[index])
        return replace(last, earlier=tuple(earlier))
