"""Which row of a batch a sample takes: one of its own, or the first with room for it."""

from itertools import chain
from typing import Protocol

from jvlmm.data.batch import BatchOptions, media_fit

LOOK_AHEAD = 16  # samples without room in a packed batch that wait for the next, while later ones fill its gaps


class Sizes(Protocol):
    """What a place depends on: a `Sequence`, or anything else that tells its sizes before it is decoded."""

    @property
    def length(self) -> int: ...  # tokens

    @property
    def grids(self) -> tuple[tuple[int, int, int], ...]: ...  # (t, h, w) of each medium, in patches


class Filling:
    """The rows of one batch, taken in order of arrival; the same samples always take the same rows.

    Samples have one `bucket_key`. Each takes the next row; with `options.pack` the first row with room for its tokens,
    so that rows hold their samples in order of arrival. Nowhere do media exceed their devices' share of patches.
    """

    def __init__(self, options: BatchOptions):
        self.rows: list[int | None] = []  # of every sample so far, None where there was no room
        self._options = options
        self._grids: list[list[tuple[int, int, int]]] = [[] for _ in range(options.batch_size)]
        self._lengths = [0] * options.batch_size
        self._patches = [0] * options.shards

    def add(self, sample: Sizes) -> None:
        """Find a place for one more sample. The first finds one, where `check_fits` lets it pass."""
        row = next((row for row in self._candidates() if self._has_room(row, sample)), None)
        self.rows.append(row)
        if row is not None:
            self._grids[row] += sample.grids
            self._lengths[row] += sample.length
            self._patches[self._shard(row)] += _patches(sample)

    @property
    def complete(self) -> bool:
        """Whether the batch should leave: every row is taken, or a sample had no room; `LOOK_AHEAD` of them, packed."""
        left = self.rows.count(None)
        if self._options.pack:
            return left == LOOK_AHEAD
        return left == 1 or len(self.rows) == self._options.batch_size

    def _candidates(self) -> range:
        taken = len(self.rows)
        return range(self._options.batch_size) if self._options.pack else range(taken, taken + 1)

    def _has_room(self, row: int, sample: Sizes) -> bool:
        options = self._options
        if options.pack and self._lengths[row] + sample.length > options.length_buckets[-1]:
            return False
        if not options.patch_buckets or not sample.grids:
            return True
        shard = self._shard(row)
        if self._patches[shard] + _patches(sample) > options.patch_buckets[-1] // options.shards:
            return False
        if options.parts == 1:
            return True
        per_shard = options.batch_size // options.shards
        before = self._grids[shard * per_shard : row + 1]
        after = self._grids[row + 1 : (shard + 1) * per_shard]
        return media_fit([*chain(*before), *sample.grids, *chain(*after)], options)

    def _shard(self, row: int) -> int:
        return row * self._options.shards // self._options.batch_size


def _patches(sample: Sizes) -> int:
    return sum(t * h * w for t, h, w in sample.grids)
