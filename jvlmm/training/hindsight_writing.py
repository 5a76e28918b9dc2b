"""What the teacher is told of each rollout: the question's ground truth, and what a judge says."""

import time
from collections.abc import Callable
from collections.abc import Sequence as Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from jvlmm.data.example import Example
from jvlmm.data.hindsight import LEAKS, Hindsight, block_text, block_tokens, hindsight_of
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError, DataError
from jvlmm.judges.endpoint import EndpointOptions
from jvlmm.judges.own import Own
from jvlmm.judges.rules import Rules
from jvlmm.judges.verdict import CAUSES, Case, Judge
from jvlmm.rewards.claims import key_frames
from jvlmm.training.experience import Group

Line = Literal["answer", "demonstration", "sibling", "window", "moments", "feedback"]
OF_QUESTION: tuple[Line, ...] = ("answer", "window", "moments")
"""What is known before there is a rollout, and `hinted` questions bring."""


@dataclass(frozen=True)
class HindsightOptions:
    """The lines that a teacher reads, where a question has them.

    The gold answer; the example's own response as a demonstration, or before it the best other response of the group
    ("sibling"); the window and the moments of the evidence; the judge's feedback.
    """

    lines: tuple[Line, ...] = (*OF_QUESTION, "feedback")
    judge: Rules | Own | EndpointOptions = field(default_factory=Rules)  # of whom feedback is asked
    max_tokens: int = 2048  # lines that do not fit are left out, from the last on

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"hindsight.max_tokens={self.max_tokens} must be at least 1")
        known = get_args(Line)
        if any(line not in known for line in self.lines):
            raise ConfigError(f"hindsight.lines={self.lines}: name lines of {', '.join(known)}")


@dataclass
class HindsightWriter:
    """`judge` makes the judge of a step from the parameters that are trained; asked where lines name its feedback."""

    options: HindsightOptions
    tokenizer: ChatTokenizer
    judge: Callable[[Any], Judge]

    def blocks(self, groups: Sized[Group], params: Any) -> tuple[list[list[np.ndarray]], dict[str, float]]:
        """(int32 [n] for every rollout of every group, empty where nothing is known; figures).

        `teacher/leaks` is the share of rollouts that use words of the block.
        """
        feedback, figures = self._feedback(groups, params)
        blocks = [
            [
                block_tokens(self._hindsight(group, number, said), self.tokenizer, self.options.max_tokens)
                for number, said in enumerate(of_group)
            ]
            for group, of_group in zip(groups, feedback, strict=True)
        ]
        lengths = [len(block) for of_group in blocks for block in of_group]
        leaks = [any(word in text.lower() for word in LEAKS) for group in groups for text in group.texts]
        return blocks, figures | {
            "teacher/known": float(np.mean([length > 0 for length in lengths])),
            "teacher/hindsight_tokens": float(np.mean(lengths)),
            "teacher/leaks": float(np.mean(leaks)),
        }

    def _feedback(self, groups: Sized[Group], params: Any) -> tuple[list[list[str]], dict[str, float]]:
        """(of every rollout, "" where the judge said nothing; figures)."""
        if "feedback" not in self.options.lines:
            return [[""] * len(group.texts) for group in groups], {}
        begun = time.perf_counter()
        judge = self.judge(params)
        verdicts = judge([Case(group.prompt.example, text) for group in groups for text in group.texts])
        figures = {"seconds/judge": time.perf_counter() - begun}
        figures["judge/failed"] = float(np.mean([verdict is None for verdict in verdicts]))
        for cause in CAUSES:
            found = [verdict is not None and verdict.cause == cause for verdict in verdicts]
            figures[f"judge/{cause.replace(' ', '_') or 'no_error'}"] = float(np.mean(found))
        said = iter("" if verdict is None else verdict.advice for verdict in verdicts)
        return [[next(said) for _ in group.texts] for group in groups], figures

    def _hindsight(self, group: Group, number: int, feedback: str) -> Hindsight:
        lines = self.options.lines
        sibling = _best_other(group, number) if "sibling" in lines else ""
        return known_of(group.prompt.example, lines, feedback, sibling)


def known_of(example: Example, lines: Sized[Line], feedback: str = "", sibling: str = "") -> Hindsight:
    """What the example gives of these lines, and what is said of one rollout; a sibling comes before its response."""
    demonstration = sibling or ((example.response or "") if "demonstration" in lines else "")
    moments: tuple[float, ...] = ()
    if "moments" in lines:
        with suppress(DataError):  # what cannot be read is one line less
            moments = tuple(frame.time for frame in key_frames(example))
    known = hindsight_of(example, moments, feedback, demonstration)
    unwanted = {"answer": "", "window": None}
    return replace(known, **{name: nothing for name, nothing in unwanted.items() if name not in lines})


def hinted(example: Example) -> Example:
    """The same question, asked with the answer, the window and the moments as a teacher reads them.

    A model that has learnt from such questions to use hindsight can teach with it.
    """
    return replace(example, hint=block_text(known_of(example, OF_QUESTION).lines()))


def _best_other(group: Group, number: int) -> str:
    """The text of the best-rewarded of the other rollouts; "" where it is no better than the group's worst."""
    others = [other for other in range(len(group.texts)) if other != number]
    best = max(others, key=lambda other: group.rewards[other])
    return group.texts[best] if group.rewards[best] > group.rewards.min() else ""
