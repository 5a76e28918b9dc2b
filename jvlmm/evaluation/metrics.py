"""Figures of one evaluation from its predictions."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from scipy import special

from jvlmm.evaluation.predictions import Prediction


def mean_half_width(values: np.ndarray) -> np.ndarray:
    """Half the 95 % interval of the mean of float [n, …] over the first axis, n at least 2: Student's t."""
    return special.stdtrit(len(values) - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(len(values))


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default (Wilson 1927); (0, 1) where nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    rate, square = correct / total, z * z
    centre = (rate + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(rate * (1 - rate) / total + square / (4 * total**2))
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))  # exact where rounding is not


def summarize(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracies by group with counts and 95 % intervals, mean IoUs, and the rows that failed with their reasons.

    Groups are `overall`, every question type, and `mcq`: all multiple choice pooled. A failed row counts as wrong in
    `accuracy` and as 0 in `tiou` and `box_iou`; `accuracy_of_answered` leaves failed rows out of the denominator.
    `question_types` and `answer_types` tell all of one type in one place.
    """
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        groups["overall"].append(prediction)
        groups[prediction.question_type].append(prediction)
        if prediction.answer_type == "mcq":
            groups["mcq"].append(prediction)
    correct = {name: sum(p.correct for p in group) for name, group in groups.items()}
    answered = {name: sum(p.error is None for p in group) for name, group in groups.items()}
    written = [p for p in predictions if p.error is None]
    return {
        "question_types": _by_type(predictions, "question_type"),
        "answer_types": _by_type(predictions, "answer_type"),
        "accuracy": {name: correct[name] / len(group) for name, group in groups.items()},
        "interval": {name: wilson_interval(correct[name], len(group)) for name, group in groups.items()},
        "accuracy_of_answered": {name: correct[name] / n if n else None for name, n in answered.items()},
        "counts": {name: len(group) for name, group in groups.items()},
        "answered": answered,
        "tiou": _mean(p.score for p in predictions if p.answer_type == "span"),
        "box_iou": _mean(p.score for p in predictions if p.answer_type == "boxes"),
        "format_rate": _mean(p.format_ok for p in written),
        "parsed_rate": _mean(p.parsed is not None for p in written),
        "finished_rate": _mean(p.finished for p in written),
        "output_tokens": _mean(p.output_tokens for p in written),
        "failed": [{"id": p.id, "error": p.error} for p in predictions if p.error is not None],
    }


def _by_type(predictions: Sequence[Prediction], field: str) -> dict[str, dict[str, Any]]:
    """Figures of each type: n, failed, accuracy with its 95 % interval over all and over the answered, mean score."""
    types: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        types[getattr(prediction, field)].append(prediction)
    figures = {}
    for name, group in sorted(types.items()):
        correct, answered = sum(p.correct for p in group), sum(p.error is None for p in group)
        figures[name] = {
            "n": len(group),
            "failed": len(group) - answered,
            "accuracy": correct / len(group),
            "interval": wilson_interval(correct, len(group)),
            "accuracy_of_answered": correct / answered if answered else None,
            "interval_of_answered": wilson_interval(correct, answered),
            "score": fmean(p.score for p in group),
        }
    return figures


def _mean(values: Iterable[float]) -> float | None:
    """The mean, or None where there is nothing to average."""
    values = list(values)
    return fmean(values) if values else None
