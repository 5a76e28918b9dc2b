"""From what a reward function returns or raises to a number that can be trained on."""

import math
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jvlmm.data.example import Example
from jvlmm.rewards.completion import Completion


class Graded(NamedTuple):
    """What one reward says of one completion; where it failed, the value means nothing and `failure` says why."""

    value: float  # finite
    details: Mapping[str, float] = {}  # what a user's function reports beside the reward
    failure: str | None = None


Grader = Callable[[Sequence[Completion], Sequence[Example]], list[Graded]]
"""Grades completions, each of the example at its place. Never raises."""


def one_by_one(
    function: Callable[[Completion, Example], Any], key: str | None = None, file: str | None = None
) -> Grader:
    """A grader that calls `function` once for each completion; `key` as in `read_result`, `file` as in `reason`."""

    def grade(completions: Sequence[Completion], examples: Sequence[Example]) -> list[Graded]:
        return [_grade_one(function, key, file, *pair) for pair in zip(completions, examples, strict=True)]

    return grade


def _grade_one(function: Callable, key: str | None, file: str | None, *pair: Any) -> Graded:
    try:
        return read_result(function(*pair), key)
    except Exception as error:
        return Graded(0.0, failure=reason(error, file))


def read_result(result: Any, key: str | None) -> Graded:
    """The reward in what a function returned: a number or, with `key`, also a mapping that holds it under this key.

    Other finite numbers of the mapping become the details. Anything but a finite number is a failure.
    """
    if isinstance(result, Mapping) and key is not None:
        if key not in result:
            return Graded(0.0, failure=f"returned a dict without {key!r}, only {', '.join(map(str, result))}")
        details = {str(name): _finite(value) for name, value in result.items() if name != key}
        graded = read_result(result[key], None)
        return graded._replace(details={name: value for name, value in details.items() if value is not None})
    value = _finite(result)
    if value is None:
        kind = "" if result is None or isinstance(result, float) else f"the {type(result).__name__} "
        return Graded(0.0, failure=f"returned {kind}{repr(result)[:80]}; a finite number is expected")
    return Graded(value)


def reason(error: BaseException, file: str | None = None) -> str:
    """One line: the error, and the line that raised it, or that of `file` which led there."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return f"{type(error).__name__}: {str(error).strip()[:200]} ({place.filename}, line {place.lineno})"


def _finite(value: Any) -> float | None:
    """A finite real number, bool and the scalars of array libraries included; else None."""
    try:
        if not isinstance(value, numbers.Real) and hasattr(value, "item"):
            value = value.item()
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except (OverflowError, TypeError, ValueError):  # an array of several elements, an integer beyond all floats
        return None
    return number if math.isfinite(number) else None
