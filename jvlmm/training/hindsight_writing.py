"""What the teacher is told of each rollout: the question's ground truth, and what a judge says."""

import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from jvlmm.data.example import Example
from jvlmm.data.hindsight import HEADER, LEAKS, Hindsight, block_text, block_tokens, hindsight_of
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import ConfigError, DataError
from jvlmm.judges.endpoint import EndpointOptions
from jvlmm.judges.own import Own
from jvlmm.judges.rules import Rules
from jvlmm.judges.verdict import CAUSES, Case, Judge
from jvlmm.rewards.claims import key_frames
from jvlmm.training.experience import Group

Line = Literal["answer", "demonstration", "sibling", "window", "moments", "feedback"]
_ROUNDING = 1e-6  # of sums of weighted rewards

OF_QUESTION: tuple[Line, ...] = ("answer", "window", "moments")
"""What is known before there is a rollout, and `hinted` questions bring."""


@dataclass(frozen=True)
class HindsightOptions:
    """The lines that a teacher reads, where a question has them.

    The gold answer; the example's own response as a demonstration, or before it the best right response of the rest of
    the group ("sibling"); the window and the moments of the evidence; the judge's feedback.

    Two settings are controls of a study, and tell what a lead comes from: without lines the teacher reads the header of
    the block alone, and `shuffled` tells it the lines of another question of the step.
    """

    lines: tuple[Line, ...] = (*OF_QUESTION, "feedback")  # (): the header alone, or nothing where another model teaches
    shuffled: bool = False  # the lines are those of another question of the step, drawn anew at each
    right: float = 1.0  # accuracy from which a sibling's response is right, or reward where no term reports an accuracy
    judge: Rules | Own | EndpointOptions = field(default_factory=Rules)  # of whom feedback is asked
    max_tokens: int = 2048  # lines that do not fit are left out, from the last on

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"hindsight.max_tokens={self.max_tokens} must be at least 1")
        known = get_args(Line)
        if any(line not in known for line in self.lines):
            raise ConfigError(f"hindsight.lines={self.lines}: name lines of {', '.join(known)}")
        if not math.isfinite(self.right):
            raise ConfigError(f"hindsight.right={self.right} must be a number; 1 is the full accuracy of an answer")
        if self.shuffled and not self.lines:
            raise ConfigError("hindsight.shuffled has an effect only with hindsight.lines; name some or set it false")


@dataclass
class HindsightWriter:
    """`judge` makes the judge of a step from the parameters that are trained; asked where lines name its feedback."""

    options: HindsightOptions
    tokenizer: ChatTokenizer
    judge: Callable[[Any], Judge]
    header: bool = True  # what is read without lines: the header alone, or nothing
    seed: int = 0  # of `shuffled`

    def blocks(
        self, groups: Sized[Group], params: Any, step: int = 0
    ) -> tuple[list[list[np.ndarray]], dict[str, float]]:
        """Returns (int32 [n] for every rollout of every group, empty where nothing is known; figures).

        With `shuffled` the rollouts of a group have the blocks of those of another question, the same for one seed and
        step; where the step has no other question nothing is known. `teacher/leaks` is the share of rollouts that use
        words of the block.
        """
        feedback, figures = self._feedback(groups, params)
        blocks = [
            [self._block(group, number, said) for number, said in enumerate(of_group)]
            for group, of_group in zip(groups, feedback, strict=True)
        ]
        if self.options.shuffled:
            others = other_questions([group.prompt.example.id for group in groups], self.seed, step)
            nothing = np.zeros(0, np.int32)
            blocks = [
                [nothing] * len(of_group) if other is None else blocks[other]
                for other, of_group in zip(others, blocks, strict=True)
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

    def _block(self, group: Group, number: int, feedback: str) -> np.ndarray:
        """int32 [n]: what the teacher reads before this rollout."""
        lines, limit = self.options.lines, self.options.max_tokens
        if not lines:
            return self.tokenizer.encode(f" {HEADER}")[: limit if self.header else 0]
        sibling = _right_other(group, number, self.options.right) if "sibling" in lines else ""
        return block_tokens(known_of(group.prompt.example, lines, feedback, sibling), self.tokenizer, limit)


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


def other_questions(ids: Sized[str], seed: int, step: int) -> list[int | None]:
    """Returns for each question the place of another one, whose id is not its own; None where all are the same.

    A cycle through the distinct ids in an order that seed and step draw, so that every question's lines are used.
    """
    places = {id: place for place, id in reversed(list(enumerate(ids)))}
    distinct = sorted(places)
    if len(distinct) < 2:
        return [None] * len(ids)
    order = [distinct[k] for k in np.random.default_rng([seed, step]).permutation(len(distinct))]
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [places[following[id]] for id in ids]


def _right_other(group: Group, number: int, right: float) -> str:
    """The text of the best-rewarded of the other rollouts that are right; "" where none is."""
    scores = group.rewards
    if group.accuracy is not None:
        scores = np.where(np.isnan(group.accuracy), group.rewards, group.accuracy)
    is_right = group.scored & (scores >= right - _ROUNDING)
    others = [other for other in range(len(group.texts)) if other != number and is_right[other]]
    return group.texts[max(others, key=lambda other: group.rewards[other])] if others else ""
