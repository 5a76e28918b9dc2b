"""A stream of sequences → batches of one bucket each, as a checkpointable grain iterator."""

from dataclasses import dataclass, field
from typing import Any

import grain

from jvlmm.data.arrivals import Arrivals
from jvlmm.data.batch import Batch, BatchOptions, bucket_key, collate
from jvlmm.data.packing import Filling
from jvlmm.data.rejections import Rejected, Rejections
from jvlmm.data.sequence import Sequence
from jvlmm.data.share import Remote, Share
from jvlmm.errors import DataError
from jvlmm.models.config import ModelConfig


@dataclass(frozen=True)
class Grouped:
    """A batch, and which examples its rows hold, in order of rows and of their places there."""

    batch: Batch
    ids: tuple[str, ...]
    positions: tuple[int, ...]  # in the stream


@dataclass
class _Waiting:
    """Sequences that share a bucket, in order of arrival, and the batch they fill."""

    filling: Filling
    samples: list[tuple[int, Sequence]] = field(default_factory=list)  # with their positions in the stream

    def add(self, position: int, sequence: Sequence) -> None:
        self.filling.add(sequence)
        self.samples.append((position, sequence))


class GroupedBatches(grain.IterDataset):
    """Groups a stream by bucket. A batch leaves when it is complete; what is left at the end leaves short."""

    def __init__(
        self,
        stream: grain.MapDataset,
        read: grain.ReadOptions,
        options: BatchOptions,
        config: ModelConfig,
        rejections: Rejections,
        epoch: int,
        share: Share | None = None,
    ):
        """`stream`: random access to Sequence or Rejected. DataError where one of its epochs, of `epoch` items, holds
        no usable one."""
        super().__init__()
        self._stream, self._read, self._epoch, self._share = stream, read, epoch, share
        self._options, self._config, self._rejections = options, config, rejections

    def __iter__(self) -> "GroupedBatchesIterator":
        a_round = max(1, self._options.batch_size // len(self._share.parts)) if self._share else 1
        arrivals = Arrivals(self._stream, self._read, self._config, self._rejections, self._share, a_round)
        return GroupedBatchesIterator(arrivals, self._options, self._config, self._rejections, self._epoch, self._share)

    def __str__(self) -> str:
        return "GroupedBatches"


class GroupedBatchesIterator(grain.DatasetIterator):
    """Its state is the number of examples read and the stream positions of those still waiting for a complete batch.

    Waiting examples are read again on restoring, so the state stays small and JSON-able, and the batches
    that follow are the same ones. With several processes it is the same in each, and restores in any number of them.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        options: BatchOptions,
        config: ModelConfig,
        rejections: Rejections,
        epoch: int,
        share: Share | None,
    ):
        super().__init__()
        self._arrivals = arrivals
        self._share = share
        self._options = options
        self._config = config
        self._rejections = rejections
        self._epoch = epoch
        self._rejected_in_a_row = 0
        self._next_position = 0
        self._waiting: dict[Any, _Waiting] = {}  # by bucket

    def __next__(self) -> Grouped:
        while True:
            try:
                item = next(self._arrivals)
            except StopIteration:
                if not self._waiting:
                    raise
                return self._batch(next(iter(self._waiting)))
            position = self._next_position
            self._next_position += 1
            if self._admit(item):
                key = self._add(position, item)
                if self._waiting[key].filling.complete:
                    return self._batch(key)

    def _admit(self, item: Sequence | Rejected) -> bool:
        """Whether the item last read is usable. DataError where it ends an epoch without one that is.

        Rejected items of two epochs that follow each other say nothing: a usable one may stand before and after them.
        """
        if isinstance(item, Sequence):
            self._rejected_in_a_row = 0
            return True
        self._rejections.add(item)
        self._rejected_in_a_row += 1
        if self._next_position % self._epoch == 0 and self._rejected_in_a_row >= self._epoch:
            raise DataError(
                f"no usable example among the last {self._rejected_in_a_row}; the last was rejected because: "
                f"{item.reason}"
            )
        return False

    def _add(self, position: int, sequence: Sequence) -> Any:
        """File a sequence under its bucket, which is returned."""
        key = bucket_key(sequence, self._options)
        if key not in self._waiting:
            self._waiting[key] = _Waiting(Filling(self._options))
        self._waiting[key].add(position, sequence)
        return key

    def _batch(self, key: Any) -> Grouped:
        """The batch of a bucket; what found no room in it waits on, ahead of what is still to come."""
        leaving = self._waiting.pop(key)
        placed = []
        for row, sample in zip(leaving.filling.rows, leaving.samples, strict=True):
            if row is None:
                self._add(*sample)
            else:
                placed.append((row, *sample))
        placed.sort(key=lambda of: of[0])
        if self._share:
            placed = self._own(placed)
        rows, positions, sequences = zip(*placed, strict=True)
        batch = collate(sequences, self._options, self._config, rows)
        return Grouped(batch, tuple(s.id for s in sequences), positions)

    def _own(self, placed: list[tuple[int, int, Sequence]]) -> list[tuple[int, int, Sequence]]:
        """(row, position, sequence) of a batch, those of this process really there."""
        if not self._options.pack:
            arranged = self._share.arrange([(position, sequence) for _, position, sequence in placed], self._options)
            placed = [(row, *sample) for row, sample in enumerate(arranged)]
        held = set(self._options.held_rows)
        return [
            (row, position, self._arrivals.read(position, item) if row in held and isinstance(item, Remote) else item)
            for row, position, item in placed
        ]

    def get_state(self) -> dict[str, Any]:
        return {
            "next_position": self._next_position,
            "waiting": [[position for position, _ in waiting.samples] for waiting in self._waiting.values()],
            "rejected_in_a_row": self._rejected_in_a_row,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._next_position = state["next_position"]
        self._rejected_in_a_row = state["rejected_in_a_row"]
        self._waiting = {}
        waiting = [position for positions in state["waiting"] for position in positions]
        for position, item in zip(waiting, self._arrivals.restore(self._next_position, waiting), strict=True):
            if isinstance(item, Sequence):
                self._add(position, item)
            else:  # usable when it was read first, and not any more
                self._rejections.add(item)

    def close(self) -> None:
        super().close()
        self._arrivals.close()

    def __str__(self) -> str:
        return "GroupedBatchesIterator"
