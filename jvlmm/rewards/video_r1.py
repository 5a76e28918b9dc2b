"""The reward functions published with Video-R1, kept as they are, and as most video recipes have copied them.

Against our own: the first answer tag wins, letters and words must be equal to the character, a comma counts as a
decimal point, 0 for 0 is worth nothing in regression, and nothing may stand around or between the blocks. One thing is
not kept: there an answer of `nan` earns 1 in regression; here it is no number.
"""

import math
import re

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.gold import gold_text, unusable
from jvlmm.rewards.overlap import mean_rouge, word_accuracy

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")

_BY_ANSWER_TYPE = {"mcq": "multiple choice", "yesno": "multiple choice", "number": "numerical", "text": "free-form"}
_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
_FORMAT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_EPSILON = 1e-9


def video_r1_accuracy(completion: Completion, example: Example) -> float:
    """`answer_reward` of the example's problem type, in [0, 1].

    The type is `meta["problem_type"]` or the question type where these name one, else it follows from the answer type.
    Raises DataError where none does, or the gold answer is not of the type.
    """
    problem_type, gold = _problem_type(example), gold_text(example)
    if problem_type in ("numerical", "regression") and _number(gold) is None:
        raise unusable(example, "a number")
    return answer_reward(problem_type, completion.text, f"<answer>{gold}</answer>")


def video_r1_format(completion: Completion, example: Example) -> float:
    """`format_reward` of the completion."""
    return format_reward(completion.text)


def answer_reward(problem_type: str, output: str, solution: str) -> float:
    """What the answer in `output` is worth against that in `solution`, both in tags, by problem type, in [0, 1]."""
    answer, gold = _first_answer(output), _first_answer(solution)
    match problem_type:
        case "multiple choice":
            return float(answer == gold)
        case "numerical":
            return _numerical(answer, gold)
        case "OCR":
            return word_accuracy(answer, gold)
        case "free-form":
            return mean_rouge(answer, gold)
        case "regression":
            return _regression(answer, gold)
    raise ValueError(f"problem type {problem_type!r} is unknown; allowed: {', '.join(PROBLEM_TYPES)}")


def format_reward(text: str) -> float:
    """1 where the whole text is `<think>…</think><answer>…</answer>`, white space between allowed, else 0."""
    return float(_FORMAT.fullmatch(text) is not None)


def _problem_type(example: Example) -> str:
    for name in (example.meta.get("problem_type"), example.question_type):
        if name in PROBLEM_TYPES:
            return name
    if example.answer_type not in _BY_ANSWER_TYPE:
        raise DataError(
            f"example {example.id!r}: Video-R1 has no reward for answers of type {example.answer_type!r}; leave the "
            "row out, or take another preset"
        )
    return _BY_ANSWER_TYPE[example.answer_type]


def _first_answer(text: str) -> str:
    found = _ANSWER.search(text)
    return found.group(1).strip() if found else ""


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _numerical(answer: str, gold: str) -> float:
    decimals = [any(mark in text for mark in ".,") for text in (answer, gold)]
    numbers = [_number(text) for text in (answer, gold)]
    if decimals[0] != decimals[1] or None in numbers:
        return 0.0
    return float(round(numbers[0], 2) == round(numbers[1], 2))


def _regression(answer: str, gold: str) -> float:
    numbers = [_number(text) for text in (answer, gold)]
    if None in numbers:
        return 0.0
    difference = (abs(numbers[0] - numbers[1]) + _EPSILON) / (abs(numbers[1]) + _EPSILON)
    return 1.0 - min(1.0, difference)
