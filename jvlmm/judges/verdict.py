"""What judges are asked and what they say. A judge is a function of several cases; None stands where it failed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jvlmm.data.example import Example

Cause = Literal["", "wrong event", "wrong time", "wrong object", "too broad", "answer drifted", "incomplete"]
CAUSES: tuple[str, ...] = get_args(Cause)
LONGEST_FEEDBACK = 1000  # characters
_NOTHING = {"", "none", "n/a", "no issue", "no issues"}


@dataclass(frozen=True)
class Case:
    """A response to be judged, with the question it answers."""

    example: Example
    text: str


@dataclass(frozen=True)
class Verdict:
    """Marks in [0, 1], None where the question knows no such mark; what went wrong first; and advice in words."""

    feedback: str
    answer: float | None = None
    consistency: float | None = None  # of the thought with the answer
    temporal_grounding: float | None = None
    spatial_grounding: float | None = None
    cause: Cause = ""

    @property
    def advice(self) -> str:
        """The feedback on one line, cut at 1,000 characters; "" where it says that there is none."""
        folded = " ".join(self.feedback.split())[:LONGEST_FEEDBACK]
        return "" if folded.strip(" .").lower() in _NOTHING else folded


Judge = Callable[[Sequence[Case]], list[Verdict | None]]
