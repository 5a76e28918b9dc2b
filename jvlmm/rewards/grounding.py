"""Where and when: rewards of spans in seconds and of boxes in pixels."""

from collections.abc import Sequence

from jvlmm.data.example import Example
from jvlmm.rewards import parsing, scoring
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.gold import duration, gold_boxes, gold_span, unusable
from jvlmm.rewards.parsing import Span


def temporal_iou(completion: Completion, example: Example) -> float:
    """Intersection over hull with the gold span, in [0, 1]; 0 where no span can be read or it is reversed."""
    gold = gold_span(example)
    return scoring.temporal_iou(_span(completion), gold)


def time_r1_iou(completion: Completion, example: Example) -> float:
    """IoU · (1 − |Δstart| / duration) · (1 − |Δend| / duration), in [0, 1] (Time-R1).

    Raises DataError where the video's duration is not known.
    """
    gold, seconds = gold_span(example), duration(example)
    span = _span(completion)
    iou = scoring.temporal_iou(span, gold)
    if span is None or iou == 0:
        return 0.0
    start, end = (max(0.0, 1.0 - abs(ours - theirs) / seconds) for ours, theirs in zip(span, gold, strict=True))
    return iou * start * end


def survey_iou(
    completion: Completion,
    example: Example,
    *,
    alpha: float,
    thresholds: Sequence[float],
    bonuses: Sequence[float],
    gamma: float,
) -> float:
    """α·IoU + Σ b_k 1[IoU ≥ τ_k] − γ·|P| / |V|, in [−γ, α + Σ b_k].

    |P| is the length of the predicted span inside the video, |V| the video's. Where no span can be read, 0.
    Raises ValueError where thresholds and bonuses differ in number or a number is negative, DataError where the
    video's duration is not known.
    """
    if len(thresholds) != len(bonuses) or not min(alpha, gamma, *thresholds, *bonuses) >= 0:
        raise ValueError("alpha, gamma, thresholds and bonuses must be 0 or more, with one bonus for each threshold")
    gold, seconds = gold_span(example), duration(example)
    span = _span(completion)
    if span is None or span[1] < span[0]:
        return 0.0
    iou = scoring.temporal_iou(span, gold)
    length = max(0.0, min(span[1], seconds) - max(span[0], 0.0))
    reached = sum(bonus for threshold, bonus in zip(thresholds, bonuses, strict=True) if iou >= threshold)
    return alpha * iou + reached - gamma * length / seconds


def spatial_iou(completion: Completion, example: Example) -> float:
    """IoU of the answer's box with the one gold box, in [0, 1]; n boxes named at once share it."""
    gold = gold_boxes(example)
    if len(gold) != 1:
        raise unusable(example, "one box")
    return scoring.mean_box_iou(_boxes(completion), gold)


def tracking_iou(completion: Completion, example: Example) -> float:
    """Mean IoU over the boxes of a track, paired in order, in [0, 1]; a missing or surplus box counts as 0."""
    gold = gold_boxes(example)
    return scoring.mean_box_iou(_boxes(completion), gold)


def _span(completion: Completion) -> Span | None:
    return parsing.parse_span(parsing.extract_answer(completion.text).text)


def _boxes(completion: Completion) -> tuple[parsing.Box, ...]:
    return parsing.parse_boxes(parsing.extract_answer(completion.text).text)
