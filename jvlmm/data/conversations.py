"""Several questions about the same media asked in one row, so that the media are encoded once for all of them."""

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import numpy as np

from jvlmm.data.example import Example
from jvlmm.data.fingerprint import data_fingerprint

_LEADING_TAGS = re.compile(r"^(\s*<(image|video)>)+\s*")


class Conversations(Sequence):
    """Examples joined into conversations of at most `turns` questions about the same media.

    `seed` decides which question follows which. A conversation is its last question, with the ones before as
    `earlier`. `media_keys` are equal for rows about the same media; without them every row is read once for its media.
    """

    def __init__(
        self, rows: Sequence[Example], turns: int, seed: int = 0, media_keys: Sequence[Hashable] | None = None
    ):
        self._rows = rows
        groups = defaultdict(list)
        for k, key in enumerate(media_keys if media_keys is not None else ((row.media, row.system) for row in rows)):
            groups[key].append(k)
        rng = np.random.default_rng(seed)
        self._members = [
            members[start : start + turns]
            for members in (rng.permutation(group).tolist() for group in groups.values())
            for start in range(0, len(members), turns)
        ]

    def __len__(self) -> int:
        return len(self._members)

    @property
    def fingerprint(self) -> list[dict[str, Any]]:
        """That of the rows; how they are joined follows from `turns` and `seed`."""
        return data_fingerprint(self._rows)

    def __getitem__(self, index: SupportsIndex) -> Example:
        first, *others = (self._rows[k] for k in self._members[index])
        *earlier, last = (first, *map(_without_leading_tags, others))  # what the first has shown is not placed again
        return replace(last, system=first.system, earlier=tuple(replace(turn, system="") for turn in earlier))


def _without_leading_tags(turn: Example) -> Example:
    """The turn without the media tags that its question begins with."""
    return replace(turn, question=_LEADING_TAGS.sub("", turn.question))
