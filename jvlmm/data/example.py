"""The neutral record every dataset is read into."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

AnswerType = Literal["mcq", "yesno", "number", "text", "span", "boxes"]

_LETTERED = re.compile(r"\s*[(（[]?([A-Z])[)）\].:：、．]\s*(\S.*)", re.DOTALL)


@dataclass(frozen=True)
class Media:
    """One image or video file, or the part of a video between `start` and `end` seconds."""

    type: Literal["image", "video"]
    path: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Example:
    """One question about some media.

    `question` holds no options and may place its media with `<image>` and `<video>`; where it does
    not, the media come first. `answer` is the gold answer as it should stand inside `<answer>`.
    `response` is the full assistant turn to learn (chain of thought and answer, or a caption);
    None where the example is only asked. Where `learn` names texts of single tokens, only these tokens of the responses
    are learnt. `system` is the system message of the conversation; "" leaves the chat template's own. `hint` ends
    the user's turn, after options and instructions. `earlier` are the turns of the conversation before this one, each
    with its own media and its response. `meta` keeps everything else the row brought. `origin` says where the row was
    read, as PATH:LINE: it tells rows of equal ids apart, and is no part of what the example says.

    Boxes, of the answer, of the evidence in `meta` and in texts, stand in `coordinates` of the medium numbered
    `box_medium`, the only one where it is None; see `coordinates`.
    """

    id: str
    question: str
    answer: str
    answer_type: AnswerType
    media: tuple[Media, ...] = ()
    options: tuple[str, ...] = ()  # texts without letters, in order A, B, C, …
    question_type: str = "general"
    response: str | None = None
    learn: tuple[str, ...] = ()
    hint: str = ""
    system: str = ""
    earlier: tuple["Example", ...] = ()
    benchmark: str = ""
    split: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    coordinates: Literal["", "file", "shown", "per-mille", "shares"] = ""  # "": not said, pixels of the file
    box_medium: int | None = None
    origin: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready record, empty fields and the origin left out."""
        record = asdict(self)
        del record["origin"]
        return {k: v for k, v in record.items() if v not in (None, "", (), {}) or k in ("question", "answer")}


def option_letters(options: Sequence[str]) -> list[str] | None:
    """Returns the letters that the options bring, as in "A. red" or "(B) blue"; None where one of them brings none."""
    found = [_LETTERED.fullmatch(option) for option in options]
    return [match[1] for match in found] if options and all(found) else None


def plain_options(options: Sequence[str]) -> tuple[str, ...]:
    """Returns the options without letters of their own, where these are A, B, C, … in order; else as they are."""
    if option_letters(options) != list(string.ascii_uppercase[: len(options)]):
        return tuple(options)
    return tuple(_LETTERED.fullmatch(option)[2].rstrip() for option in options)
