"""In which pixels a box stands, and the same box in others.

A data set's gold boxes stand in the pixels of its files, or in shares of their sides; a model sees a resized picture,
and answers in the pixels that it sees (Qwen2.5-VL) or in thousandths of the sides (Qwen2-VL, Qwen3-VL). All that is
scored, rewarded, judged, learnt or told is brought into the model's own coordinates first, by `as_answered`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from jvlmm.data.example import Example
from jvlmm.errors import DataError

Coordinates = Literal["file", "shown", "per-mille", "shares"]
COORDINATES: tuple[str, ...] = get_args(Coordinates)
"""Pixels of the file (upright, after its rotation), pixels of the picture as the model is shown it, thousandths of the
sides, shares of the sides."""

Box = tuple[float, float, float, float]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_GAP = r"\s*,\s*"
_TEXT_BOX = re.compile(  # [x1,y1,x2,y2], (x1,y1,x2,y2) and (x1,y1),(x2,y2), brackets round or square
    rf"([\[(]\s*){_GAP.join([f'({_NUMBER})'] * 2)}((?:\s*[\])])?\s*,\s*(?:[\[(]\s*)?)"
    rf"{_GAP.join([f'({_NUMBER})'] * 2)}(\s*[\])])"
)
_TAGGED = re.compile(r"<box>.*?</box>", re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """One image or video as a model is shown it. Sizes are (width, height), upright, as a box's numbers are ordered."""

    type: Literal["image", "video"]
    path: str
    frames: tuple[int, ...]  # numbers of the frames taken
    times: tuple[float, ...]  # seconds, of these frames
    file_size: tuple[int, int]  # pixels of the file
    shown_size: tuple[int, int]  # pixels after resizing
    start: float | None = None  # seconds, the part of the video that was asked for
    end: float | None = None
    asked_frames: int | None = None  # where fewer were taken: so many are what the options ask for
    asked_size: tuple[int, int] | None = None  # where the pictures are smaller: the size that the options ask for

    @property
    def reduced(self) -> str:
        """One line on what was given up to make it fit; "" where all that was asked for is shown."""
        parts = []
        if self.asked_frames is not None:
            parts.append(f"{len(self.frames)} of {self.asked_frames} frames")
        if self.asked_size is not None:
            parts.append("{}x{} pixels instead of {}x{}".format(*self.shown_size, *self.asked_size))
        return f"{self.path}: {', '.join(parts)}" if parts else ""

    def described(self) -> dict[str, Any]:
        """JSON-ready record without the frames and their times, empty fields left out."""
        record = asdict(self)
        return {name: value for name, value in record.items() if value is not None and name not in ("frames", "times")}


def convert(box: Box, given: Coordinates, wanted: Coordinates, shown: Shown) -> Box:
    """A box (x1, y1, x2, y2) of one coordinate system in another, unrounded."""
    sides = {"file": shown.file_size, "shown": shown.shown_size, "per-mille": (1000, 1000), "shares": (1, 1)}
    old, new = sides[given], sides[wanted]
    if old == new:
        return box
    return tuple(value * new[axis % 2] / old[axis % 2] for axis, value in enumerate(box))


def note(answers: Coordinates, shown: Sequence[Shown]) -> str:
    """The sentence that tells in a prompt which coordinates an answer's box is wanted in.

    "" where there is no doubt: the model sees the one picture in the size that it has in its file.
    """
    if answers == "per-mille":
        return "Coordinates run from 0 to 1000 along each side."
    if answers == "shares":
        return "Coordinates run from 0 to 1 along each side."
    sizes = {medium.file_size if answers == "file" else medium.shown_size for medium in shown}
    if len(sizes) != 1 or all(medium.file_size == medium.shown_size for medium in shown):
        return ""
    return "Coordinates are pixels of a {}x{} picture.".format(*sizes.pop())


def as_answered(example: Example, answers: Coordinates, shown: Sequence[Shown]) -> Example:
    """The example with all its boxes in the coordinates of a model's answers, which `Example.coordinates` then names.

    These are the boxes of its gold answer and of the evidence in `meta`, which stay exact, and those of texts, rounded
    as a model writes them (to whole numbers, shares to three places): what stands in `<box>` tags in question, options,
    hint and response, and every box of hint and response where the answer is of type `boxes`. `shown` are the media of
    its prompt; without any nothing is converted. Where nothing changes, not a letter of it does.

    Raises DataError where boxes must be converted and it is not known of which picture they are.
    """
    given: Coordinates = example.coordinates or "file"
    example = replace(
        example, coordinates=answers, earlier=tuple(as_answered(turn, answers, shown) for turn in example.earlier)
    )
    if given == answers or not shown or not _has_boxes(example):
        return example
    of = _medium(example, shown)
    if of is None:
        raise DataError(
            f"{example.id}: its boxes are in coordinates of {given!r}, answers in {answers!r}, and of its "
            f"{len(shown)} media it is not known which one they are of; name it by box_medium=0, 1, …"
        )
    if convert((1.0, 1.0, 1.0, 1.0), given, answers, of) == (1.0, 1.0, 1.0, 1.0):
        return example

    def exact(box: Box) -> Box:
        return convert(box, given, answers, of)

    places, boxed = 3 if answers == "shares" else 0, example.answer_type == "boxes"

    def written(text: str, everywhere: bool = False) -> str:
        if everywhere:
            return _rewritten(text, exact, places)
        return _TAGGED.sub(lambda found: _rewritten(found.group(), exact, places), text)

    return replace(
        example,
        question=written(example.question),
        options=tuple(map(written, example.options)),
        hint=written(example.hint, everywhere=boxed),
        answer=_rewritten(example.answer, exact, 6) if boxed else written(example.answer),
        response=None if example.response is None else written(example.response, everywhere=boxed),
        meta=_with_evidence(example.meta, exact),
    )


def whole_numbers(text: str) -> str:
    """A text with the numbers of its boxes rounded to whole ones, unless all of a box are shares."""
    return _rewritten(text, lambda box: tuple(map(round, box)) if max(box) > 1 else box, 6)


def _medium(example: Example, shown: Sequence[Shown]) -> Shown | None:
    """Of which picture the example's boxes are; None where that is not known."""
    own = [(medium.type, medium.path, medium.start, medium.end) for medium in example.media]
    about = [medium for medium in shown if not own or (medium.type, medium.path, medium.start, medium.end) in own]
    if example.box_medium is not None:
        # The number counts the row's own list; tags may show its media in another order, or one of them twice.
        named = own[example.box_medium : example.box_medium + 1]
        return next(
            (medium for medium in about if [(medium.type, medium.path, medium.start, medium.end)] == named), None
        )
    sizes = {(medium.file_size, medium.shown_size) for medium in about}
    return about[0] if len(sizes) == 1 else None


def _has_boxes(example: Example) -> bool:
    texts = [example.question, example.hint, example.answer, example.response or "", *example.options]
    if example.answer_type == "boxes" or any(_TAGGED.search(text) for text in texts):
        return True
    changed = _with_evidence(example.meta, lambda box: (*box, 0.0))
    return changed != example.meta


def _rewritten(text: str, change: Callable[[Box], Box], places: int) -> str:
    """A text with its boxes changed and their numbers rounded; brackets and all else stay."""

    def one(found: re.Match[str]) -> str:
        box = tuple(float(found.group(at)) for at in (2, 3, 5, 6))
        if not all(map(math.isfinite, box)):
            return found.group()
        values = [round(value, places) if places else round(value) for value in change(box)]
        x1, y1, x2, y2 = (json.dumps(int(value) if value == int(value) else value) for value in values)
        comma = ", " if re.search(r",\s", found.group()) else ","
        return f"{found.group(1)}{x1}{comma}{y1}{found.group(4)}{x2}{comma}{y2}{found.group(7)}"

    return _TEXT_BOX.sub(one, text)


def _with_evidence(meta: Mapping[str, Any], change: Callable[[Box], Box]) -> Mapping[str, Any]:
    """`meta` with the boxes of its evidence changed; evidence of another form stays, for `key_frames` to refuse."""
    try:
        frames = [
            {
                **frame,
                "objects": {
                    name: [list(change(tuple(map(float, box)))) for box in boxes]
                    for name, boxes in frame["objects"].items()
                },
            }
            for frame in meta["evidence"]
        ]
    except (TypeError, KeyError, ValueError, AttributeError, IndexError):
        return meta
    return {**meta, "evidence": frames}
