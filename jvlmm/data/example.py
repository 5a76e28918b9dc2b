"""The neutral record every dataset is read into."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

AnswerType = Literal["mcq", "yesno", "number", "text", "span", "boxes"]


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
    are learnt. `hint` ends the user's turn, after options and instructions. `earlier` are the turns of the
    conversation before this one: questions about the same media, each with its response. `meta` keeps everything else
    the row brought.
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
    earlier: tuple["Example", ...] = ()
    benchmark: str = ""
    split: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready record, empty fields left out."""
        record = asdict(self)
        return {k: v for k, v in record.items() if v not in (None, "", (), {}) or k in ("question", "answer")}
