"""The rewards of VISD's released code for thoughts that say when and where (arXiv:2605.06094); all in [0, 1].

Times are those a thought cites in `<t>` tags, places the boxes of the objects it names; see `claims`. The answer is
what stands in the first `<answer>` tag. A multiple choice of question type `temporal` whose row brings a window,
`meta["window"]`, asks for both:
`From <t>3.0</t>s to <t>7.0</t>s` and then `Correct Option: B`.

Where the release differs: a claim there has no white space between its tags, `at` and the time; a time counts there
without `</t>`'s white space; the key frame of a claim may lie any time before it there, here within 1 s on both sides;
names are compared there without leaving out articles; and it never refuses a row that lacks what a reward needs.
"""

import math
import re
from typing import Literal

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.rewards import parsing, scoring
from jvlmm.rewards.claims import KeyFrame, claims, key_frames, nearest, same_name, thought, times
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.gold import gold_boxes, gold_choices, gold_span, unusable
from jvlmm.rewards.overlap import mean_rouge, rouge_gold
from jvlmm.rewards.parsing import Box, Span

_SAME_MOMENT = 1.0  # seconds between a claim and the key frame it is judged by
_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_OPTION = "Correct Option:"
_SPAN = re.compile(r"<t>(\d+\.?\d*)</t>s to <t>(\d+\.?\d*)</t>s")
_BOX = re.compile(r"<box>(\[.*?\])</box>")
_OBJECT_WITH_BOX = re.compile(r"<obj>\w+</obj><box>\[.*?\]</box>")


def strict_or_free_form(completion: Completion, example: Example) -> float:
    """Of a multiple choice 1 for `X`, `X.`, `(X)` or `[X]` alone; of any other answer the mean F of three ROUGEs.

    Where the row brings a window, the letter stands after `Correct Option:`, and nothing after it.
    """
    answer = _first_answer(completion.text)
    if example.answer_type != "mcq":
        return mean_rouge(answer, rouge_gold(example))
    (letter,) = gold_choices(example)
    if _asks_for_both(example):
        _, *after = answer.split(_OPTION)
        answer = after[0].strip() if after else ""
    return float(answer in (letter, f"{letter}.", f"({letter})", f"[{letter}]"))


def tagged_span(completion: Completion, example: Example) -> float:
    """Intersection over hull of the answer's first `<t>a</t>s to <t>b</t>s` with the gold span; 0 where b < a.

    The gold span is the answer, or `meta["window"]` of a multiple choice.
    """
    gold = _gold_window(example)
    found = _SPAN.search(_first_answer(completion.text))
    span = (float(found.group(1)), float(found.group(2))) if found else None
    if span is None or not (span[0] <= span[1] < math.inf):
        return 0.0
    hull = max(span[1], gold[1]) - min(span[0], gold[0])
    return max(0.0, min(span[1], gold[1]) - max(span[0], gold[0])) / hull if hull else 0.0


def tagged_box(completion: Completion, example: Example) -> float:
    """IoU of the answer's first `<box>[x1, y1, x2, y2]</box>` with the first gold box."""
    gold, boxes = gold_boxes(example)[0], _tagged_boxes(_first_answer(completion.text))
    return scoring.box_iou(boxes[0], gold) if boxes and boxes[0] else 0.0


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
    """Share of the thought's times that lie in the gold span, or a multiple choice's window; 0 where it cites none."""
    start, end = _gold_window(example)
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
    if not _ANSWER.search(completion.text):
        return 0.0
    made = [claim for claim in claims(thought(completion.text)) if claim.time is not None]
    found = [value for claim in made if (value := _agreement(claim, nearest(frames, claim.time))) is not None]
    return sum(found) / max(1, len(found) if divide_by == "matched" else len(made))


def thought_box(completion: Completion, example: Example) -> float:
    """The best IoU of a box in the thought with the first gold box; 0 without an answer."""
    gold = gold_boxes(example)[0]
    boxes = _tagged_boxes(thought(completion.text)) if _ANSWER.search(completion.text) else ()
    return max((scoring.box_iou(box, gold) for box in boxes if box), default=0.0)


def grounded_format(completion: Completion, example: Example) -> float:
    """0 without thought and answer or with a tag left open; 1 with the tags that the question needs; else 1/2.

    A span, or a choice with a window, needs two `<t>` in the thought; a question with key frames of a video `<obj>`,
    `<box>` and `<t>` in the thought; a box these three, or one `<obj>word</obj><box>[…]</box>` anywhere; others
    nothing.
    """
    text = completion.text
    if not (_THOUGHT.search(text) and _ANSWER.search(text)):
        return 0.0
    thinking = thought(text)
    for tag, where in (("think", text), ("answer", text), ("obj", thinking), ("t", thinking), ("box", thinking)):
        if where.count(f"<{tag}>") != where.count(f"</{tag}>"):
            return 0.0
    grounded = all(f"<{tag}>" in thinking for tag in ("obj", "t", "box"))
    if example.answer_type == "span" or _asks_for_both(example):
        grounded = thinking.count("<t>") >= 2
    elif example.answer_type == "boxes":
        grounded = grounded or _OBJECT_WITH_BOX.search(text) is not None
    elif example.question_type != "spatio-temporal":
        grounded = True
    return 1.0 if grounded else 0.5


def _first_answer(text: str) -> str:
    found = _ANSWER.search(text)
    return found.group(1) if found else ""


def _asks_for_both(example: Example) -> bool:
    """Whether a letter and a span are wanted in one answer."""
    is_temporal_choice = (example.answer_type, example.question_type) == ("mcq", "temporal")
    return is_temporal_choice and example.meta.get("window") is not None


def _gold_window(example: Example) -> Span:
    """The gold answer as a span, or the window of a multiple choice: [start, end] in its meta."""
    if example.answer_type != "mcq":
        return gold_span(example)
    window = example.meta.get("window")
    try:
        start, end = map(float, window)
    except (TypeError, ValueError):
        start, end = math.nan, math.nan
    if not (math.isfinite(start) and start <= end < math.inf):
        raise DataError(f"example {example.id!r}: window is {window!r} in its meta; give [start, end] in seconds")
    return start, end


def _tagged_boxes(text: str) -> tuple[Box | None, ...]:
    """What stands in each `<box>[…]</box>`; None where these are no four numbers."""
    return tuple(boxes[0] if len(boxes := parsing.parse_boxes(found)) == 1 else None for found in _BOX.findall(text))


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
