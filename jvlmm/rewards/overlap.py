"""How much of a text is as it should be: rewards in [0, 1] by the words an answer shares with the gold answer."""

import re
from functools import cache

from jvlmm.data.example import Example
from jvlmm.rewards import parsing
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.gold import gold_text, unusable

_MEASURES = ("rouge1", "rouge2", "rougeL")


def ocr(completion: Completion, example: Example) -> float:
    """1 − WER of the answer, not below 0; words are what white space separates."""
    gold = gold_text(example)
    return word_accuracy(parsing.extract_answer(completion.text).text, gold)


def free_form(completion: Completion, example: Example) -> float:
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L of the answer, words stemmed.

    A text of one word has no pairs of words, so that the right one earns 2/3. ROUGE knows only the letters a to z and
    digits: a gold answer without any is a DataError.
    """
    return mean_rouge(parsing.extract_answer(completion.text).text, rouge_gold(example))


def rouge_gold(example: Example) -> str:
    """The gold answer, which must have letters a to z or digits: nothing else is a word to ROUGE."""
    gold = gold_text(example)
    if not re.search("[a-z0-9]", gold.lower()):
        raise unusable(example, "a text with letters a to z or digits")
    return gold


def word_accuracy(prediction: str, gold: str) -> float:
    """1 − word error rate against a gold text with at least one word, not below 0."""
    import jiwer

    return max(0.0, 1.0 - jiwer.wer(" ".join(gold.split()), " ".join(prediction.split())))


def mean_rouge(prediction: str, gold: str) -> float:
    """Mean F of ROUGE-1, ROUGE-2 and ROUGE-L, words stemmed."""
    scores = _rouge().score(gold, prediction)
    return sum(scores[measure].fmeasure for measure in _MEASURES) / len(_MEASURES)


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer  # it imports nltk, which takes seconds

    return RougeScorer(_MEASURES, use_stemmer=True)
