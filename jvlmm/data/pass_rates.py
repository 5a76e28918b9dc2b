"""Which questions are worth asking: neither those that every rollout answers, nor those that none does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jvlmm.data.example import Example
from jvlmm.data.fingerprint import data_fingerprint
from jvlmm.errors import ConfigError, DataError


@dataclass(frozen=True)
class PassRateOptions:
    """A pass rate is the share of right answers of some model; EasyVideoR1 keeps 0 < rate < 1."""

    field: str = "pass_rate"  # of a row, where it is known beforehand
    above: float | None = None  # rows with a known rate of at most this are left out
    below: float | None = None  # likewise those of at least this
    easy_first: bool = False  # a curriculum: every epoch goes from high known rates to low ones, then the unknown
    rest: int = 0  # visits that a question is passed over after one in which its rewards were all equal

    def __post_init__(self) -> None:
        low, high = self.interval
        if low >= high:
            raise ConfigError(f"pass_rates.above={self.above}, pass_rates.below={self.below} leave no row; widen them")
        if self.rest < 0:
            raise ConfigError(f"pass_rates.rest={self.rest} must be at least 0 (0: off)")

    @property
    def interval(self) -> tuple[float, float]:
        """What a known rate must lie strictly between."""
        return (-1.0 if self.above is None else self.above), (2.0 if self.below is None else self.below)


@dataclass(frozen=True)
class Ordered(Sequence):
    """Examples in another order, each read when it is asked for."""

    examples: Sequence[Example]
    order: tuple[int, ...]

    @property
    def fingerprint(self) -> list[dict[str, Any]]:
        """That of the examples, whose rates give the order."""
        return data_fingerprint(self.examples)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Example:
        return self.examples[self.order[index]]


class PassRates:
    """Keeps questions by what is known of them, and by what was seen; the state is JSON-able."""

    def __init__(self, options: PassRateOptions):
        self._options = options
        self._resting: dict[str, int] = {}  # id → visits to pass over

    def check(self, example: Example) -> None:
        """DataError for a row whose known rate lies outside."""
        options, rate = self._options, self._rate(example)
        if rate is None or options.above is options.below is None:
            return
        low, high = options.interval
        if not low < rate < high:
            raise DataError(
                f"example {example.id!r}: its {options.field} of {rate} is not above {options.above} and below "
                f"{options.below} (pass_rates)"
            )

    def ordered(self, examples: Sequence[Example]) -> Sequence[Example]:
        """With `easy_first` by their known rates, ties as they come, else as they are. DataError where none is known.

        What is no rate is left for `check` to refuse.
        """
        if not self._options.easy_first:
            return examples
        rates = [self._rate(example, refuse=False) for example in examples]
        if all(rate is None for rate in rates):
            raise DataError(
                f"pass_rates.easy_first: no row has a {self._options.field!r} to order them by; measure it, name "
                "another field, or leave the option out"
            )
        order = sorted(range(len(rates)), key=lambda row: (rates[row] is None, -(rates[row] or 0.0)))
        return Ordered(examples, tuple(order))

    def _rate(self, example: Example, refuse: bool = True) -> float | None:
        """The known one; None where there is none."""
        rate = example.meta.get(self._options.field)
        if rate is None or (not isinstance(rate, bool) and isinstance(rate, int | float) and rate == rate):
            return rate
        if refuse:
            raise DataError(f"example {example.id!r}: {self._options.field} is {rate!r}, not a number from 0 to 1")
        return None

    def skips(self, example: Example) -> bool:
        """Whether the question rests at this visit."""
        left = self._resting.pop(example.id, 0)
        if left > 1:
            self._resting[example.id] = left - 1
        return left > 0

    def observe(self, seen: Iterable[tuple[str, bool]]) -> None:
        """(id, whether its rewards differed) of questions that were asked."""
        if self._options.rest:
            self._resting |= {name: self._options.rest for name, differed in seen if not differed}

    def get_state(self) -> dict[str, int]:
        """What rests."""
        return dict(self._resting)

    def set_state(self, state: dict[str, int]) -> None:
        """Continue with what `get_state` gave."""
        self._resting = dict(state)
