"""A stream of sequences → batches of one bucket each, as a checkpointable grain iterator."""

from dataclasses import dataclass, field
from typing import Any

import grain

from jvlmm.data.batch import Batch, BatchOptions, bucket_key, collate
from jvlmm.data.packing import Filling
from jvlmm.data.rejections import Rejected, Rejections
from jvlmm.data.sequence import Sequence
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
        patience: int,
    ):
        """`stream`: random access to Sequence or Rejected. `patience`: DataError after so many rejected in a row."""
        super().__init__(stream.to_iter_dataset(read))
        self._arguments = (stream, options, config, rejections, patience)

    def __iter__(self) -> "GroupedBatchesIterator":
        return GroupedBatchesIterator(iter(self._parent), *self._arguments)

    def __str__(self) -> str:
        return "GroupedBatches"


class GroupedBatchesIterator(grain.DatasetIterator):
    """Its state is the number of examples read and the stream positions of those still waiting for a complete batch.

    Waiting examples are read again on restoring, so the state stays small and JSON-able, and the batches
    that follow are the same ones.
    """

    def __init__(
        self,
        parent: grain.DatasetIterator,
        stream: grain.MapDataset,
        options: BatchOptions,
        config: ModelConfig,
        rejections: Rejections,
        patience: int,
    ):
        super().__init__(parent)
        self._stream = stream
        self._options = options
        self._config = config
        self._rejections = rejections
        self._patience = patience
        self._rejected_in_a_row = 0
        self._next_position = 0
        self._waiting: dict[Any, _Waiting] = {}  # by bucket

    def __next__(self) -> Grouped:
        while True:
            try:
                item = next(self._parent)
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
        if isinstance(item, Sequence):
            self._rejected_in_a_row = 0
            return True
        self._rejections.add(item)
        self._rejected_in_a_row += 1
        if self._rejected_in_a_row >= self._patience:
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
        rows, positions, sequences = zip(*sorted(placed, key=lambda of: of[0]), strict=True)
        batch = collate(sequences, self._options, self._config, rows)
        return Grouped(batch, tuple(s.id for s in sequences), positions)

    def get_state(self) -> dict[str, Any]:
        return {
            "read": self._parent.get_state(),
            "next_position": self._next_position,
            "waiting": [[position for position, _ in waiting.samples] for waiting in self._waiting.values()],
            "rejected_in_a_row": self._rejected_in_a_row,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["read"])
        self._next_position = state["next_position"]
        self._rejected_in_a_row = state["rejected_in_a_row"]
        self._waiting = {}
        for positions in state["waiting"]:
            for position in positions:
                item = self._stream[position]
                if self._admit(item):
                    self._add(position, item)

    def __str__(self) -> str:
        return "GroupedBatchesIterator"
