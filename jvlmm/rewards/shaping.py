"""Rewards of form, length and repetition: how an answer is given, not what it says."""

from jvlmm.data.example import Example
from jvlmm.rewards import parsing
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.scoring import score


def format_reward(completion: Completion, example: Example) -> float:
    """1 for `<think>…</think><answer>…</answer>`, each tag once, white space around and between allowed; else 0."""
    return float(parsing.format_ok(completion.text))


def repetition(completion: Completion, example: Example, *, ngram: int = 4) -> float:
    """−(share of the n-grams of words that occurred before), in (−1, 0] (open-r1's repetition penalty).

    Raises ValueError for `ngram` below 1.
    """
    return -_repeated_share(completion.text, ngram)


def length(completion: Completion, example: Example, *, min_tokens: int = 320, max_tokens: int = 512) -> float:
    """1 for a correct, finished completion of `min_tokens` to `max_tokens` tokens, else 0.

    Raises ValueError where the bounds are reversed.
    """
    if not 0 <= min_tokens <= max_tokens:
        raise ValueError(f"min_tokens = {min_tokens} must be 0 or more and at most max_tokens = {max_tokens}")
    correct = score(completion.text, example).correct
    return float(correct and completion.finished and min_tokens <= completion.num_tokens <= max_tokens)


def overlong(completion: Completion, example: Example, *, max_tokens: int, buffer: int) -> float:
    """0 up to `max_tokens − buffer` tokens, from there linearly to −1 at `max_tokens`, −1 beyond (DAPO, eq. 13).

    Raises ValueError where the buffer is not between 1 and `max_tokens`.
    """
    if not 1 <= buffer <= max_tokens:
        raise ValueError(f"buffer = {buffer} must be between 1 and max_tokens = {max_tokens}")
    return max(-1.0, min(0.0, (max_tokens - buffer - completion.num_tokens) / buffer))


def budget(
    completion: Completion,
    example: Example,
    *,
    max_tokens: int,
    saving: float = 1.0,
    repeating: float = 1.0,
    ngram: int = 4,
) -> float:
    """saving · 1[correct] · (1 − tokens / max_tokens) − repeating · (share of repeated n-grams of words).

    The value lies in [−repeating, saving]. Beyond `max_tokens` nothing is saved, so that a correct answer is never
    worth less than a wrong one.
    Raises ValueError for a budget or `ngram` below 1, or a negative factor.
    """
    if not (max_tokens >= 1 and saving >= 0 and repeating >= 0):
        raise ValueError("max_tokens must be at least 1, saving and repeating 0 or more")
    correct = score(completion.text, example).correct
    unused = max(0.0, 1.0 - completion.num_tokens / max_tokens)
    return saving * correct * unused - repeating * _repeated_share(completion.text, ngram)


def _repeated_share(text: str, n: int) -> float:
    """Share of the n-grams of words, case ignored, that stand earlier in the text too; 0 where there is none."""
    if n < 1:
        raise ValueError(f"ngram = {n} must be at least 1")
    words = text.casefold().split()
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
