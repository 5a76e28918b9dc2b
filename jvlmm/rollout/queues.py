"""Prompts waiting for a row, by bucket: the device works on one bucket of prompt lengths at a time."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jvlmm.data.sequence import Sequence


@dataclass(frozen=True)
class Asked:
    """A prompt, and how many completions of it are wanted."""

    number: int  # under which they are handed out
    sequence: Sequence
    features: np.ndarray  # [m, D], as `VisualFeatures.of` gives them
    samples: int = 1


class Queues:
    """Reads a stream as far as a bucket needs it; what belongs to other buckets waits, up to `limit` prompts."""

    def __init__(self, stream: Iterator[Asked], bucket_of: Callable[[Asked], int], limit: int):
        self._stream, self._bucket_of, self._limit = stream, bucket_of, limit
        self._waiting: dict[int, deque[Asked]] = {}

    def next_bucket(self) -> int | None:
        """That of the most prompts waiting; None when the stream has ended and none is."""
        if not self._count() and not self._read():
            return None
        return max(self._waiting, key=lambda bucket: len(self._waiting[bucket]))

    def take(self, bucket: int) -> Asked | None:
        """The next prompt of the bucket; None where the stream has none, or too many others would have to wait."""
        while not self._waiting.get(bucket):
            if self._count() >= self._limit or not self._read():
                return None
        return self._waiting[bucket].popleft()

    def _read(self) -> bool:
        asked = next(self._stream, None)
        if asked is not None:
            self._waiting.setdefault(self._bucket_of(asked), deque()).append(asked)
        return asked is not None

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))
