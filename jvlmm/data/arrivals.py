"""Examples of a stream, processed ahead and handed out in order; with several processes, each does its share."""

from collections import deque
from collections.abc import Sequence as Sized
from itertools import islice

import grain

from jvlmm.data.rejections import Rejected, Rejections
from jvlmm.data.sequence import Sequence
from jvlmm.data.share import Remote, Share, from_outline, outline
from jvlmm.models.config import ModelConfig


class Arrivals:
    """Iterator over the stream from any position on.

    Alone it hands out what grain's threads have processed. With a `share`, those threads process every so many-th
    example only; the processes tell each other what came of theirs, round by round, and stand-ins (`Remote`) come in
    place of the others'. What all processes see is then the same, rejected examples included.
    """

    def __init__(
        self,
        stream: grain.MapDataset,
        read: grain.ReadOptions,
        config: ModelConfig,
        rejections: Rejections,
        share: Share | None,
        examples_a_round: int,
    ):
        """`stream`: random access to Sequence or Rejected. `examples_a_round`: of each process."""
        self._stream, self._read, self._config, self._share = stream, read, config, share
        self._rejections, self._examples_a_round = rejections, examples_a_round
        self._refused: list[Rejected] = []  # by this process only, after the others were told otherwise
        self._items: grain.DatasetIterator | None = None
        self.start(0)

    def start(self, position: int) -> None:
        """Go on with the example at `position`."""
        self.close()
        self._ready: deque[Sequence | Rejected] = deque()
        self._agreed = position  # the examples before it are known to all processes
        first, step = position, 1
        if self._share:
            step = len(self._share.parts)
            first += (self._share.mine - position) % step
        self._items = iter(self._stream[first::step].to_iter_dataset(self._read))

    def restore(self, position: int, waiting: Sized[int]) -> list[Sequence | Rejected]:
        """The examples at the positions `waiting`; the next to come is the one at `position`."""
        self.start(position)
        if self._share:
            self._share.exchange.restart()
        return self._agree(waiting, [self._stream[p] for p in waiting if self._is_mine(p)])

    def __next__(self) -> Sequence | Rejected:
        if not self._share:
            return next(self._items)
        if not self._ready:
            span = self._examples_a_round * len(self._share.parts)
            positions = range(self._agreed, min(self._agreed + span, len(self._stream)))
            mine = sum(map(self._is_mine, positions))
            self._ready.extend(self._agree(positions, list(islice(self._items, mine))))
            self._agreed = positions.stop
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def read(self, position: int, remote: Remote) -> Sequence:
        """The sequence another process was to hold, read here; its stand-in where that fails, which is then listed."""
        item = self._stream[position]
        if isinstance(item, Sequence):
            return item
        self._refused.append(item)
        return remote

    def close(self) -> None:
        """Stop the threads."""
        if self._items is not None:
            self._items.close()

    def _is_mine(self, position: int) -> bool:
        return not self._share or self._share.group_of(position) == self._share.mine

    def _agree(self, positions: Sized[int], own: list[Sequence | Rejected]) -> list[Sequence | Rejected]:
        """The items at `positions`, as all processes see them; `own` are this one's."""
        if not self._share:
            return own
        refused, self._refused = self._refused, []
        speaks = self._share.process in self._share.speakers
        values = self._share.exchange.round(
            {
                "items": [outline(item) for item in own] if speaks else [],
                "refused": [outline(item) for item in refused],
            }
        )
        for value in values:
            for row in value["refused"]:
                self._rejections.add(Rejected(row["id"], row["reason"], row["origin"]))
        said = [iter(values[speaker]["items"]) for speaker in self._share.speakers]
        mine = iter(own)
        return [
            self._item(next(said[self._share.group_of(p)]), next(mine) if self._is_mine(p) else None) for p in positions
        ]

    def _item(self, said: dict, own: Sequence | Rejected | None) -> Sequence | Rejected:
        """What its group's speaker says of an example decides, also where this process has seen it otherwise."""
        item = from_outline(said, self._config)
        if isinstance(item, Rejected) or own is None:
            return item
        if isinstance(own, Rejected):
            self._refused.append(own)
            return item
        return own
