"""Example → chat messages: where the media stand, how options are lettered, what form of answer is asked for."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Literal

from jvlmm.data.example import Example, Media, plain_options
from jvlmm.errors import DataError

Style = Literal["direct", "think", "describe"]

ANSWER_FORMS = {
    "mcq": "Answer with the letter.",
    "yesno": "Answer yes or no.",
    "number": "Answer with a number.",
    "text": "Answer with a word or phrase.",
    "span": "Answer with the start and end in seconds.",
    "boxes": "Answer with the box [x1,y1,x2,y2].",
}
"""What each answer type asks for. Short, as every prompt carries it."""

THINK = "Think in <think></think>, then answer in <answer></answer>."

_TAG = re.compile(r"<(image|video)>")


def render(example: Example, style: Style = "direct", box_note: str = "") -> list[dict]:
    """Returns the conversation up to the user's last turn as chat messages.

    A `system` text comes first as a message of its own; then one user message, and two more for each earlier turn.
    The content of a user message is a list of text, image and video items in order, with the media of `turns_of`.

    Styles: `direct` asks for the bare answer, `think` for reasoning and then the answer (DeepSeek-R1's
    format), `describe` adds no instruction. Captions (`question_type` begins with "caption", or there is
    a response but no gold answer) are rendered as `describe` in every style. Media take the places of the `<image>` and
    `<video>` tags in the question; a type without tags comes before the text.

    `box_note` follows the form of an answer with boxes: which pixels are meant, see `coordinates.note`.

    Raises DataError naming the example's id for an empty question, an answer type without options, tags
    that do not match the media in number, or an earlier turn without a response.
    """
    turns = turns_of(example)
    messages = [{"role": "system", "content": example.system}] if example.system else []
    messages.append(_ask(turns[0], style, box_note))
    for answered, asked in pairwise(turns):
        if not (answered.response or "").strip():
            raise DataError(f"{example.id}: the earlier turn {answered.id} has no response; give it one")
        messages += [{"role": "assistant", "content": answered.response}, _ask(asked, style, box_note)]
    return messages


def turns_of(example: Example) -> list[Example]:
    """Returns the turns of a conversation, each with the media that it shows.

    Every turn shows its own media. Media that a turn before it has shown already are not shown again, unless the turn
    places them by tags: questions about the same media are asked of one showing. Where only the last turn lists media
    of a type, but tags of it stand in earlier turns too (one list for the whole conversation, as LLaMA-Factory writes
    it), the media go to the tags of all turns in order.
    """
    turns = [*example.earlier, example]
    for kind in ("image", "video"):
        turns = _dealt(turns, kind)
    shown: list[tuple[Media, ...]] = []
    for number, turn in enumerate(turns):
        if turn.media in shown and not _TAG.search(turn.question):
            turns[number] = replace(turn, media=())
        shown.append(turn.media)
    return turns


def _dealt(turns: list[Example], kind: str) -> list[Example]:
    """The turns with the last one's media of a type at the tags of all of them, where these are equal in number."""
    tags = [_TAG.findall(turn.question).count(kind) for turn in turns]
    listed = [[media for media in turn.media if media.type == kind] for turn in turns]
    if not any(tags[:-1]) or any(listed[:-1]) or sum(tags) != len(listed[-1]):
        return turns
    left = iter(listed[-1])
    return [
        replace(turn, media=(*(m for m in turn.media if m.type != kind), *islice(left, count)))
        for turn, count in zip(turns, tags, strict=True)
    ]


def media_in_order(example: Example, messages: Sequence[Mapping]) -> list[Media]:
    """Returns the media of a conversation in the order in which its messages, as `render` makes them, place them."""
    asked = [message for message in messages if message["role"] == "user"]
    ordered = []
    for turn, message in zip(turns_of(example), asked, strict=True):
        queues = {kind: iter([m for m in turn.media if m.type == kind]) for kind in ("image", "video")}
        ordered += [next(queues[item["type"]]) for item in message["content"] if item["type"] in queues]
    return ordered


def _ask(example: Example, style: Style, box_note: str) -> dict:
    """The user's turn of one example."""
    if style not in ("direct", "think", "describe"):
        raise DataError(f"{example.id}: prompt style {style!r} is unknown; allowed: direct, think, describe")
    question = example.question.strip()
    if not _TAG.sub("", question).strip():
        raise DataError(f"{example.id}: the question is empty; give it a text besides its media tags")
    text = "\n".join([question, *lettered(example), *_instruction(example, style, box_note)]) + example.hint
    return {"role": "user", "content": _place_media(example, text)}


def lettered(example: Example) -> list[str]:
    """The options as lines "A. …"; letters that they bring themselves are not said twice."""
    if len(example.options) > len(string.ascii_uppercase):
        raise DataError(f"{example.id}: {len(example.options)} options; allowed: at most 26, one letter each")
    options = plain_options(example.options)
    return [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]


def _instruction(example: Example, style: Style, box_note: str) -> list[str]:
    is_caption = example.question_type.startswith("caption") or (example.response is not None and not example.answer)
    if style == "describe" or is_caption:
        return []
    if example.answer_type not in ANSWER_FORMS:
        allowed = ", ".join(ANSWER_FORMS)
        raise DataError(f"{example.id}: answer_type {example.answer_type!r} is unknown; allowed: {allowed}")
    if example.answer_type == "mcq" and not example.options:
        raise DataError(f"{example.id}: answer_type mcq without options; give the options or another answer type")
    form = ANSWER_FORMS[example.answer_type]
    if example.answer_type == "boxes" and box_note:
        form = f"{form} {box_note}"
    return [f"{THINK} {form}" if style == "think" else form]


def _place_media(example: Example, text: str) -> list[dict]:
    """Content items: media of a type without tags first, then the text cut at its tags."""
    tags = _TAG.findall(text)
    items = []
    for kind in ("image", "video"):
        media, places = sum(m.type == kind for m in example.media), tags.count(kind)
        if places and places != media:
            raise DataError(
                f"{example.id}: {places} <{kind}> in the text, but {media} {kind}(s) in media; make the numbers equal"
            )
    items = [{"type": m.type} for m in example.media if m.type not in tags]
    for i, piece in enumerate(_TAG.split(text)):
        if i % 2:
            items.append({"type": piece})
        elif piece:
            items.append({"type": "text", "text": piece})
    return items
