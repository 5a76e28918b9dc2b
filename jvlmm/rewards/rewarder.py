"""The terms as one function of completions and their examples."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.rewards.completion import Completion, RewardFunction
from jvlmm.rewards.graded import Graded, Grader, one_by_one
from jvlmm.rewards.registry import ANSWER_REWARDS, EMPTY, bind
from jvlmm.rewards.table import Failure, RewardTable
from jvlmm.rewards.terms import RewardOptions, RewardTerm
from jvlmm.rewards.user_files import is_user_file, load_user_reward


@dataclass(frozen=True)
class _BoundTerm:
    term: RewardTerm
    grade: Grader
    function: RewardFunction | None  # None: of a user's file


@dataclass(frozen=True)
class Rewarder:
    """`rewarder(completions, examples) -> RewardTable`; made by `make_rewarder`."""

    terms: tuple[_BoundTerm, ...]

    def __call__(self, completions: Sequence[Completion], examples: Sequence[Example]) -> RewardTable:
        """The rewards of N completions, each of the example at its place.

        Where a reward raises, or returns anything but a finite number, its part is NaN and listed in `failures`; so is
        the total, if the term has a weight: nothing is known of this completion, which is not the same as 0. Raises
        ValueError where the two differ in number.
        """
        if len(completions) != len(examples):
            raise ValueError(f"{len(completions)} completions of {len(examples)} examples; give each its example")
        total, accuracy = np.zeros(len(examples)), np.full(len(examples), np.nan)
        parts, failures = {}, {}
        details: dict[str, np.ndarray] = defaultdict(lambda: np.full(len(examples), np.nan))
        for bound in self.terms:
            term = bound.term
            rows = [row for row, example in enumerate(examples) if term.applies(example)]
            graded = bound.grade([completions[row] for row in rows], [examples[row] for row in rows]) if rows else []
            part = np.full(len(examples), np.nan)
            for row, grade in zip(rows, graded, strict=True):
                part[row] = np.nan if grade.failure else grade.value
                total[row] += term.weight * part[row] if term.weight else 0.0
                for name, value in grade.details.items():
                    details[f"{term.name}.{name}"][row] = value
                if np.isnan(accuracy[row]) and not grade.failure:
                    accuracy[row] = _accuracy(term, grade)
            parts[term.name] = part
            failed = [(examples[row].id, g.failure) for row, g in zip(rows, graded, strict=True) if g.failure]
            if failed:
                failures[term.name] = Failure(len(failed), f"example {failed[0][0]!r}: {failed[0][1]}")
        return RewardTable(total, parts, accuracy, dict(details), failures)

    def check(self, example: Example) -> None:
        """To be called when data are read: raises DataError where a term cannot use the example's gold answer.

        An example to which no term applies is refused, too. Users' own functions are not asked.
        """
        bound = [bound for bound in self.terms if bound.term.applies(example)]
        if not bound:
            raise DataError(
                f"example {example.id!r}: no reward term takes question type {example.question_type!r} with answer "
                f"type {example.answer_type!r}; add a term or leave the row out"
            )
        for term in bound:
            if term.function is not None:
                term.function(EMPTY, example)


def make_rewarder(options: RewardOptions) -> Rewarder:
    """The function the options describe. Raises ConfigError where a user's file cannot be used."""
    return Rewarder(tuple(map(_bind, options.all_terms)))


def _bind(term: RewardTerm) -> _BoundTerm:
    if is_user_file(term.reward):
        return _BoundTerm(term, load_user_reward(term.reward, term.arguments), None)
    function = bind(term.reward, term.arguments)
    return _BoundTerm(term, one_by_one(function), function)


def _accuracy(term: RewardTerm, grade: Graded) -> float:
    """What the term says of the answer: its value, or the accuracy a user's function reports; NaN where nothing."""
    if term.reward in ANSWER_REWARDS:
        return grade.value
    return grade.details.get("accuracy", grade.details.get("acc", np.nan))
