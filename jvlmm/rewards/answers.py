"""How right an answer is: rewards in [0, 1] that compare letters, words and numbers with the gold answer.

All read the last `<answer>` tag, as `parsing.extract_answer` finds it.
"""

from decimal import ROUND_HALF_UP, Decimal, localcontext

from jvlmm.data.example import Example
from jvlmm.rewards import parsing
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.gold import gold_choices, gold_number, gold_text, unusable
from jvlmm.rewards.scoring import score

_PLACES = Decimal("0.01")
_ROUNDING = 1e-9  # of a quotient of floats, so that an error of exactly 5 % passes the threshold of 95 %


def accuracy(completion: Completion, example: Example) -> float:
    """1 for the right letter, word or number, IoU for spans and boxes: `scoring.score` by the example's answer type."""
    return score(completion.text, example).value


def multiple_choice(completion: Completion, example: Example) -> float:
    """1 where the letters of the answer are those of the gold answer, one or several."""
    gold = gold_choices(example)
    return float(_choices(completion, example) == gold)


def multi_answer(completion: Completion, example: Example) -> float:
    """|prediction| / |gold| where every letter of the prediction is right, else 0 (TW-GRPO's soft reward)."""
    gold = gold_choices(example)
    prediction = _choices(completion, example)
    return len(prediction) / len(gold) if prediction and prediction <= gold else 0.0


def numeric_strict(completion: Completion, example: Example) -> float:
    """1 where both numbers have decimals or neither has, and they agree rounded half up to two places."""
    gold = parsing.parse_decimal(gold_text(example))
    if gold is None:
        raise unusable(example, "a number")
    prediction = parsing.parse_decimal(_answer(completion))
    if prediction is None or _has_decimals(prediction) != _has_decimals(gold):
        return 0.0
    return float(_rounded(prediction) == _rounded(gold))


def numeric_tolerant(completion: Completion, example: Example, *, tolerance: float = 1e-2) -> float:
    """1 where the number lies within `tolerance`, relative to the gold number.

    Raises ValueError for a negative tolerance.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance} must be 0 or more")
    return float(_relative_error(completion, example) <= tolerance + _ROUNDING)


def regression(completion: Completion, example: Example) -> float:
    """1 − min(1, |p − g| / |g|); a gold number of 0 is met by 0 alone."""
    return 1.0 - min(1.0, _relative_error(completion, example))


def mra(completion: Completion, example: Example) -> float:
    """Mean relative accuracy: the share of θ in .50, .55, …, .95 with |p − g| / |g| ≤ 1 − θ (VSI-Bench)."""
    error = _relative_error(completion, example)
    return sum(error <= (20 - step) / 20 + _ROUNDING for step in range(10, 20)) / 10


def _answer(completion: Completion) -> str:
    return parsing.extract_answer(completion.text).text


def _choices(completion: Completion, example: Example) -> frozenset[str] | None:
    return parsing.parse_choices(_answer(completion), example.options)


def _relative_error(completion: Completion, example: Example) -> float:
    """|p − g| / |g|, 0 where both are 0, infinite where only the gold number is, or no number can be read."""
    gold = gold_number(example)
    prediction = parsing.parse_number(_answer(completion))
    if prediction is None:
        return float("inf")
    if gold == 0:
        return 0.0 if prediction == 0 else float("inf")
    return abs(prediction - gold) / abs(gold)


def _has_decimals(number: Decimal) -> bool:
    return number.as_tuple().exponent < 0


def _rounded(number: Decimal) -> Decimal:
    with localcontext(prec=400):  # every finite float has at most 309 digits before the point
        return number.quantize(_PLACES, rounding=ROUND_HALF_UP)
