"""What rewards need of an example: its gold answer in the form they compare, else a DataError."""

import math

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.rewards import parsing
from jvlmm.rewards.parsing import Box, Span


def unusable(example: Example, need: str) -> DataError:
    """The error of an example whose gold answer is not `need`."""
    return DataError(
        f"example {example.id!r}: the gold answer {example.answer!r} is not {need}; correct the row or leave it out"
    )


def gold_text(example: Example) -> str:
    """The gold answer without its tag; not empty."""
    text = parsing.extract_answer(example.answer).text
    if not text:
        raise unusable(example, "a text")
    return text


def gold_number(example: Example) -> float:
    """The gold answer as a finite number."""
    number = parsing.parse_number(gold_text(example))
    if number is None:
        raise unusable(example, "a number")
    return number


def gold_choices(example: Example) -> frozenset[str]:
    """The letters of the options that are right; at least one."""
    letters = parsing.parse_choices(gold_text(example), example.options)
    if letters is None:
        raise unusable(example, "the letter or letters of its options")
    return letters


def gold_span(example: Example) -> Span:
    """Start and end in seconds, in this order."""
    span = parsing.parse_span(gold_text(example))
    if span is None or span[1] < span[0]:
        raise unusable(example, "a start and a later end in seconds")
    return span


def gold_boxes(example: Example) -> tuple[Box, ...]:
    """One or more boxes with an area."""
    boxes = parsing.parse_boxes(gold_text(example))
    if not boxes or any(box[2] <= box[0] or box[3] <= box[1] for box in boxes):
        raise unusable(example, "one or more boxes [x1,y1,x2,y2] with an area")
    return boxes


def duration(example: Example) -> float:
    """Seconds of the video: `meta["duration"]`, or the bounds of the only video among the media."""
    videos = [media for media in example.media if media.type == "video"]
    bounded = len(videos) == 1 and videos[0].end is not None
    seconds = example.meta.get("duration", videos[0].end - (videos[0].start or 0.0) if bounded else None)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise DataError(
            f"example {example.id!r}: the video's duration is {seconds!r}; give seconds as duration in meta, or start "
            "and end of the video"
        )
    return float(seconds)
