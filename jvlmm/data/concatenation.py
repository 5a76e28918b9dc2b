"""Several random-access sequences of examples as one."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, SupportsIndex

from jvlmm.data.example import Example
from jvlmm.data.fingerprint import data_fingerprint


class Concatenation(Sequence):
    """The rows of every part in turn; `change` is applied to a row when it is read."""

    def __init__(self, parts: Sequence[Sequence[Example]], change: Callable[[Example], Example] | None = None):
        self._parts = list(parts)
        self._ends = list(accumulate(len(part) for part in self._parts))
        self._change = change

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def fingerprint(self) -> list[dict[str, Any]]:
        """As `data_fingerprint` says it of each part; `change` is code, not data."""
        return [entry for part in self._parts for entry in data_fingerprint(part)]

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = range(len(self))[index]
        part = bisect_right(self._ends, index)
        row = self._parts[part][index - (self._ends[part - 1] if part else 0)]
        return self._change(row) if self._change else row
