"""Which boxes an answer gives: four numbers each, or two corners."""

import math
import re

from jvlmm.rewards.plain_text import AMBIGUOUS, NOTHING, Reading, plain

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_NEXT = r"(?:\s*,\s*|\s+)"
_FOUR = rf"\s*{_NEXT.join([_NUMBER] * 4)}\s*"
_CORNER = rf"[\[(]\s*{_NUMBER}{_NEXT}{_NUMBER}\s*[\])]"
_KEYS = "".join(rf"\W*{key}\"?'?\s*[:=]\s*{_NUMBER}" for key in ("x1", "y1", "x2", "y2"))
_FORMS = re.compile(
    rf"(?P<four>[\[(]{_FOUR}[\])])|<box>(?P<tagged>{_FOUR})</box>|(?P<corners>{_CORNER}(?:\s*,?\s*{_CORNER})+)|(?P<keys>{_KEYS})"
)


def read_boxes(text: str) -> Reading:
    """A tuple of (x1, y1, x2, y2) in order, not empty; see `parsing.parse_boxes`."""
    text = plain(text).strip()
    if re.fullmatch(_FOUR, text):  # without brackets, only where nothing else is said
        return _read([text])
    found = list(_FORMS.finditer(text))
    # a row of corners is one box only where it has two of them: of four, nobody can tell boxes from a polygon
    if any(match["corners"] and len(re.findall(_CORNER, match["corners"])) != 2 for match in found):
        return AMBIGUOUS
    return _read([re.sub(r"\b[xy][12]\b", "", match.group()) for match in found])


def _read(found: list[str]) -> Reading:
    boxes = [tuple(map(float, re.findall(_NUMBER, written))) for written in found]
    boxes = tuple(box for box in boxes if all(map(math.isfinite, box)))
    return Reading(boxes) if boxes else NOTHING
