"""What a reward sees of a rollout."""

from collections.abc import Callable
from dataclasses import dataclass

from jvlmm.data.example import Example


@dataclass(frozen=True)
class Completion:
    """One sampled response. `finished` is False where it was cut off at the limit of tokens.

    `progress` in [0, 1] is the share of the training that lay behind when it was sampled: rewards with a curriculum
    follow it.
    """

    text: str
    num_tokens: int
    finished: bool = True
    progress: float = 1.0


RewardFunction = Callable[[Completion, Example], float]
"""Pure: equal arguments give equal rewards. Raises DataError where the gold answer lacks what the reward needs."""
