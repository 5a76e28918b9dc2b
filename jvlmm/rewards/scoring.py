"""Scoring of a response against the gold answer of its example."""

from dataclasses import dataclass, replace
from itertools import zip_longest

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.rewards import parsing
from jvlmm.rewards.parsing import Box, Reading, Span

Parsed = str | float | Span | tuple[Box, ...] | None

IOU_THRESHOLD = 0.5  # of spans and boxes that count as correct
NUMBER_TOLERANCE = 1e-2  # relative


@dataclass(frozen=True)
class Score:
    """What a response is worth. `parsed` is None where no answer of the example's type could be read."""

    value: float  # in [0, 1]
    correct: bool
    parsed: Parsed
    method: str  # where the answer stood: see `parsing.Answer`; "ambiguous" where it has more than one reading
    format_ok: bool
    tiou: float | None = None  # spans only
    iou: float | None = None  # boxes only


def temporal_iou(prediction: Span | None, gold: Span) -> float:
    """Intersection over hull of two spans in seconds; 0 where the prediction is missing, reversed or before time 0."""
    if prediction is None or prediction[1] < prediction[0] or prediction[1] < 0:
        return 0.0
    start, end = max(prediction[0], 0.0), prediction[1]
    hull = max(end, gold[1]) - min(start, gold[0])
    intersection = max(0.0, min(end, gold[1]) - max(start, gold[0]))
    return intersection / hull if hull > 0 else 1.0


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 for a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) if box[2] > box[0] and box[3] > box[1] else 0.0 for box in (a, b)]
    if width <= 0 or height <= 0 or min(areas) <= 0:
        return 0.0
    return width * height / (sum(areas) - width * height)


def mean_box_iou(prediction: tuple[Box, ...], gold: tuple[Box, ...]) -> float:
    """Mean IoU of boxes paired in order; a missing or surplus box counts as 0."""
    pairs = list(zip_longest(prediction, gold))
    return sum(box_iou(p, g) for p, g in pairs if p and g) / len(pairs) if pairs else 0.0


def read(text: str, example: Example) -> Reading:
    """The answer of the example's type that stands in `text`, and whether it had more than one reading."""
    match example.answer_type:
        case "mcq":
            return parsing.read_choice(text, example.options)
        case "yesno":
            return parsing.read_yesno(text)
        case "number":
            number = parsing.read_number(text)
            return number if number.value is None else Reading(float(number.value))
        case "span":
            return parsing.read_span(text)
        case "boxes":
            return parsing.read_boxes(text)
        case "text":
            return parsing.read_text(text)
    raise DataError(
        f"example {example.id!r}: unknown answer type {example.answer_type!r}; allowed are mcq, yesno, number, text, "
        "span and boxes"
    )


def parse(text: str, example: Example) -> Parsed:
    """The answer of the example's type that stands in `text`, or None."""
    return read(text, example).value


def parse_gold(example: Example) -> Parsed:
    """The parsed gold answer. Raises DataError where it lacks what its type needs: such a row cannot be scored."""
    gold = parse(parsing.extract_answer(example.answer).text, example)
    if gold is None or (example.answer_type == "span" and gold[1] < gold[0]):
        raise DataError(
            f"example {example.id!r}: the gold answer {example.answer!r} is not of type {example.answer_type!r}; "
            "correct the row or leave it out"
        )
    return gold


def agrees(example: Example) -> bool | None:
    """Whether the example's own response gives its answer; True where it has none, or may say it in other words.

    None where that answer is none of its type, as "maybe" is no yes or no.
    """
    try:
        parse_gold(example)
    except DataError:
        return None
    if example.answer_type == "text" or not (example.response or "").strip():
        return True
    return score(example.response, example).correct


def score(text: str, example: Example, require_format: bool = False) -> Score:
    """Score the response `text`: exact for letters, words and numbers (1 % tolerance), by IoU for spans and boxes.

    With `require_format`, a response that is not `<think>…</think><answer>…</answer>` is worth 0 in every measure.
    """
    gold = parse_gold(example)
    answer = parsing.extract_answer(text)
    parsed, ambiguous = read(answer.text, example)
    value, measures = 0.0, {}
    match example.answer_type:
        case "span":
            value = temporal_iou(parsed, gold)
            measures = {"tiou": value}
        case "boxes":
            value = mean_box_iou(parsed or (), gold)
            measures = {"iou": value}
        case "number":
            value = float(parsed is not None and abs(parsed - gold) <= NUMBER_TOLERANCE * abs(gold))
        case _:
            value = float(parsed == gold)
    method = "ambiguous" if ambiguous else answer.method
    result = Score(value, value >= IOU_THRESHOLD, parsed, method, parsing.format_ok(text), **measures)
    if require_format and not result.format_ok:
        return replace(result, value=0.0, correct=False, **dict.fromkeys(measures, 0.0))
    return result
