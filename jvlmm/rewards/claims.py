"""What a response claims of when and where, and what is true of it: times, and boxes of named objects.

A thought cites a time as `<t>1.5</t>s` and an object as `<obj>red circle</obj><box>[x1,y1,x2,y2]</box> at <t>1.5</t>s`,
several boxes one after another where there are several of its name. Total functions of strings.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.rewards import parsing
from jvlmm.rewards.parsing import Box

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_SECONDS = r"<t>\s*(\d+(?:\.\d*)?|\.\d+)\s*</t>"
_TIME = re.compile(_SECONDS)
_CLAIM = re.compile(rf"<obj>([^<]*)</obj>((?:\s*<box>[^<]*</box>)+)(?:\s*at\s*{_SECONDS})?")


@dataclass(frozen=True)
class Claim:
    """An object at some boxes in pixels, at a time in seconds where one is said."""

    name: str
    boxes: tuple[Box, ...]
    time: float | None


@dataclass(frozen=True)
class KeyFrame:
    """What is where at a time in seconds."""

    time: float
    objects: dict[str, tuple[Box, ...]]


def thought(text: str) -> str:
    """What stands in the first `<think>` tag; "" where none is closed."""
    found = _THOUGHT.search(text)
    return found.group(1) if found else ""


def times(text: str) -> tuple[float, ...]:
    """Every `<t>…</t>` in seconds, in order."""
    return tuple(float(found) for found in _TIME.findall(text))


def claims(text: str) -> tuple[Claim, ...]:
    """Every object that is given a box, in order; one whose boxes cannot be read has none."""
    return tuple(
        Claim(name.strip(), parsing.parse_boxes(boxes), float(time) if time else None)
        for name, boxes, time in _CLAIM.findall(text)
    )


def key_frames(example: Example) -> tuple[KeyFrame, ...]:
    """The evidence of the question, in order of time: `meta["evidence"]`, a list of
    {"time": seconds, "objects": {name: [[x1, y1, x2, y2], …]}}; () where the row brought none.

    Raises DataError where it has another form.
    """
    given = example.meta.get("evidence")
    if given is None:
        return ()
    try:
        frames = [KeyFrame(_time(frame["time"]), _objects(frame["objects"])) for frame in given]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(
            f"example {example.id!r}: its evidence cannot be read ({type(error).__name__}: {error}); give a list of "
            '{"time": seconds, "objects": {name: [[x1, y1, x2, y2], …]}}'
        ) from None
    return tuple(sorted(frames, key=lambda frame: frame.time))


def same_name(one: str, other: str) -> bool:
    """Whether two names may mean the same: equal, one inside the other, or with a word in common."""
    one, other = parsing.normalize_text(one), parsing.normalize_text(other)
    if not one or not other:
        return False
    return one in other or other in one or bool(set(one.split()) & set(other.split()))


def nearest(frames: Sequence[KeyFrame], time: float) -> KeyFrame:
    """The key frame next to a time; of two as near, the earlier."""
    return min(frames, key=lambda frame: abs(frame.time - time))


def _time(value: float) -> float:
    seconds = float(value)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"time {value!r}")
    return seconds


def _objects(given: dict[str, Sequence[Sequence[float]]]) -> dict[str, tuple[Box, ...]]:
    objects = {name: tuple(tuple(map(float, box)) for box in boxes) for name, boxes in given.items()}
    if any(len(box) != 4 for boxes in objects.values() for box in boxes):
        raise ValueError("a box needs 4 numbers")
    return objects
