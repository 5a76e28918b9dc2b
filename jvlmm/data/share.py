"""Which rows of every batch a process reads, where several processes train together.

All processes plan the same batches, from what they tell each other about the examples they have processed: lengths
and grids, never pixels. Examples are dealt out in turn; a row that the plan gives to a process which has not
processed its example is read there once more.
"""

from collections.abc import Sequence as Sized
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import numpy as np

from jvlmm.data.batch import BatchOptions, media_fit
from jvlmm.data.rejections import Rejected
from jvlmm.data.sequence import Sequence
from jvlmm.errors import ConfigError
from jvlmm.models.config import ModelConfig
from jvlmm.video.clip import Patches


class Exchange(Protocol):
    """See `jvlmm.sharding.exchange.Exchange`."""

    def round(self, value: Any) -> list[Any]: ...
    def interrupt(self) -> None: ...
    def restart(self) -> None: ...


@dataclass(frozen=True)
class Remote(Sequence):
    """Stands for a sequence that another process holds: of its shape, with nothing to learn and no pixels."""


@dataclass(frozen=True)
class Share:
    """The part of one process. Processes with the same shards form a group and read the same examples."""

    exchange: Exchange
    shards: tuple[tuple[int, ...], ...]  # of a batch's rows, for every process
    process: int
    parts: tuple[tuple[int, ...], ...] = field(init=False)  # of `shards`, for every group
    speakers: tuple[int, ...] = field(init=False)  # the process that speaks for each group
    mine: int = field(init=False)  # the group of this process

    def __post_init__(self) -> None:
        parts = tuple(dict.fromkeys(self.shards))
        if len(set().union(*parts)) != sum(map(len, parts)):
            raise ConfigError(
                f"the mesh gives processes overlapping parts of a batch: {parts}; choose mesh axes that divide the "
                "devices of a process, or are multiples of them"
            )
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "speakers", tuple(map(self.shards.index, parts)))
        object.__setattr__(self, "mine", parts.index(self.shards[self.process]))

    def group_of(self, position: int) -> int:
        """The group that processes the example at this position of the stream."""
        return position % len(self.parts)

    def arrange(self, rows: Sized[tuple[int, Sequence]], options: BatchOptions) -> list[tuple[int, Sequence]]:
        """(position, sequence) of each row of a batch, reordered so that few rows have to be read again.

        A batch that is short, or whose media would not fit their shards in that order, stays as it is.
        """
        of_shard = options.batch_size // options.shards
        if len(rows) < options.batch_size:
            return list(rows)
        taken: dict[int, list[int]] = {group: [] for group in range(len(self.parts))}
        left = []
        for number, (position, _) in enumerate(rows):
            group = self.group_of(position)
            fits = len(taken[group]) < of_shard * len(self.parts[group])
            (taken[group] if fits else left).append(number)
        arranged = list(rows)
        for group, shards in enumerate(self.parts):
            places = [shard * of_shard + k for shard in shards for k in range(of_shard)]
            missing = len(places) - len(taken[group])
            numbers, left = taken[group] + left[:missing], left[missing:]
            for place, number in zip(places, numbers, strict=True):
                arranged[place] = rows[number]
        return arranged if _fit(arranged, of_shard, options) else list(rows)


def _fit(rows: Sized[tuple[int, Sequence]], of_shard: int, options: BatchOptions) -> bool:
    """Whether the media of every shard's rows fit."""
    grids = [sequence.grids for _, sequence in rows]
    return all(media_fit([*chain(*grids[k : k + of_shard])], options) for k in range(0, len(grids), of_shard))


def outline(item: Sequence | Rejected) -> dict[str, Any]:
    """What the other processes need to know of an example: JSON-ready."""
    if isinstance(item, Rejected):
        return {"id": item.id, "reason": item.reason, "origin": item.origin}
    visual = int((item.visual_index >= 0).sum())
    return {"id": item.id, "length": item.length, "visual": visual, "grids": [p.grid for p in item.patches]}


def from_outline(outline: dict[str, Any], config: ModelConfig) -> Remote | Rejected:
    """The stand-in for another process's example; its arrays take next to no memory."""
    if "reason" in outline:
        return Rejected(outline["id"], outline["reason"], outline["origin"])
    length = outline["length"]
    visual_index = np.full(length, -1, np.int32)
    visual_index[: outline["visual"]] = np.arange(outline["visual"])
    return Remote(
        id=outline["id"],
        tokens=np.full(length, config.tokens.pad, np.int32),
        positions=np.broadcast_to(np.int32(0), (3, length)),
        loss_mask=np.broadcast_to(np.False_, length),
        visual_index=visual_index,
        patches=tuple(_blank(tuple(grid), config.vision.patch_dim) for grid in outline["grids"]),
        next_position=0,
    )


def _blank(grid: tuple[int, int, int], patch_dim: int) -> Patches:
    pixels = np.broadcast_to(np.uint8(0), (int(np.prod(grid)), patch_dim))
    return Patches(pixels, grid, 0.0, np.zeros(grid[0]), np.zeros(grid[0], np.int64))
