"""The rewards of VISD's released code for thoughts that say when and where (arXiv:2605.06094); all in [0, 1].

Times are those a thought cites in `<t>` tags, places the boxes of the objects it names; see `claims`.
"""

import math
import re
from typing import Literal

from jvlmm.data.example import Example
from jvlmm.rewards import parsing, scoring
from jvlmm.rewards.claims import KeyFrame, claims, key_frames, nearest, same_name, thought, times
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.gold import gold_boxes, gold_choices, gold_span, unusable
from jvlmm.rewards.overlap import free_form

_SAME_MOMENT = 1.0  # seconds between a claim and the key frame it is judged by
_GROUNDING_TAGS = {"span": ("t",), "boxes": ("box",)}
_TAGS = ("think", "answer", "t", "obj", "box")


def strict_or_free_form(completion: Completion, example: Example) -> float:
    """Of a multiple choice 1 for `X`, `X.`, `(X)` or `[X]` alone; of any other answer `overlap.free_form`."""
    if example.answer_type != "mcq":
        return free_form(completion, example)
    (letter,) = gold_choices(example)
    answer = parsing.extract_answer(completion.text).text
    return float(answer in (letter, f"{letter}.", f"({letter})", f"[{letter}]"))


def thought_moments(completion: Completion, example: Example) -> float:
    """Mean over the thought's times of exp(−Δt² / 2σ²), Δt to the next key frame; 0 where it cites none.

    σ = 4 (1 − p) seconds while the progress p of the run is below 3/4, then 1. DataError without key frames.
    """
    frames = _needed_frames(example)
    cited = times(thought(completion.text))
    if not cited:
        return 0.0
    sigma = 4 * (1 - completion.progress) if completion.progress < 0.75 else 1.0
    away = [abs(nearest(frames, time).time - time) for time in cited]
    return sum(math.exp(-(seconds**2) / (2 * sigma**2)) for seconds in away) / len(away)


def thought_window(completion: Completion, example: Example) -> float:
    """Share of the thought's times that lie in the gold span; 0 where it cites none."""
    start, end = gold_span(example)
    cited = times(thought(completion.text))
    return sum(start <= time <= end for time in cited) / len(cited) if cited else 0.0


def thought_objects(
    completion: Completion, example: Example, *, divide_by: Literal["matched", "claims"] = "matched"
) -> float:
    """How well the thought's claims of objects at a time agree with the key frames.

    A claim counts within 1 s of the next key frame, by the objects there of a like name: for each of them the mean
    over its boxes of the best IoU with the claim's, of several objects their mean. The release divides by the claims
    that found such an object, so that a wrong one costs nothing; "claims" divides by all of them.

    Raises ValueError for another `divide_by`, DataError without key frames.
    """
    if divide_by not in ("matched", "claims"):
        raise ValueError(f"divide_by = {divide_by!r} is unknown; allowed: matched, claims")
    frames = _needed_frames(example)
    made = [claim for claim in claims(thought(completion.text)) if claim.time is not None]
    found = [value for claim in made if (value := _agreement(claim, nearest(frames, claim.time))) is not None]
    return sum(found) / max(1, len(found) if divide_by == "matched" else len(made))


def thought_box(completion: Completion, example: Example) -> float:
    """The best IoU of a box in the thought with a gold box."""
    gold = gold_boxes(example)
    boxes = parsing.parse_boxes(thought(completion.text))
    return max((scoring.box_iou(box, other) for box in boxes for other in gold), default=0.0)


def grounded_format(completion: Completion, example: Example) -> float:
    """0 without thought and answer or with a tag left open; 1 with the tags that the question needs; else 1/2.

    Spans need `<t>`, boxes `<box>`, questions with key frames of a video `<t>` and `<obj>`, others none.
    """
    text = completion.text
    if not re.search(r"<think>.*</think>\s*<answer>.*</answer>", text, re.DOTALL):
        return 0.0
    if any(text.count(f"<{tag}>") != text.count(f"</{tag}>") for tag in _TAGS):
        return 0.0
    needed = _GROUNDING_TAGS.get(example.answer_type, ())
    if not needed and example.question_type == "spatio-temporal":
        needed = ("t", "obj")
    return 1.0 if all(f"<{tag}>" in text for tag in needed) else 0.5


def _needed_frames(example: Example) -> tuple[KeyFrame, ...]:
    frames = key_frames(example)
    if not frames:
        raise unusable(example, "given with key frames in meta, as evidence")
    return frames


def _agreement(claim, frame: KeyFrame) -> float | None:
    """Of a claim with the frame it is about; None where it is about nothing there."""
    alike = [boxes for name, boxes in frame.objects.items() if boxes and same_name(name, claim.name)]
    if abs(frame.time - claim.time) > _SAME_MOMENT or not alike:
        return None
    best = lambda box: max((scoring.box_iou(box, other) for other in claim.boxes), default=0.0)  # noqa: E731
    return sum(sum(map(best, boxes)) / len(boxes) for boxes in alike) / len(alike)
