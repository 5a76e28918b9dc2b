"""Reading an answer out of what a model wrote: total functions of strings.

`read_*` tell nothing to read from several possible readings; `parse_*` have None for both. No reading is a guess: of
"5-6" and of "A or B" nothing is taken.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from jvlmm.rewards.box_reading import read_boxes
from jvlmm.rewards.choice_reading import read_choice, read_choices, without_letters
from jvlmm.rewards.number_reading import read_number
from jvlmm.rewards.plain_text import AMBIGUOUS, NOTHING, Reading, normalize_text
from jvlmm.rewards.span_reading import read_span

__all__ = [
    *("Answer", "Box", "Reading", "Span", "extract_answer", "format_ok", "normalize_text", "parse_boxes"),
    *("parse_choice", "parse_choices", "parse_decimal", "parse_number", "parse_span", "parse_yesno"),
    *("read_boxes", "read_choice", "read_choices", "read_number", "read_span", "read_text", "read_yesno"),
    "without_letters",
]

Span = tuple[float, float]  # start, end in seconds, as written: the end may precede the start
Box = tuple[float, float, float, float]  # x1, y1, x2, y2, in the coordinates they are written in

_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_YES_NO = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}
_CHINESE_YES_NO = re.compile("(不是|不对|不正确|没有|否|不)|(是的?|对的?|正确)")
_DENIED = re.compile(r"\b(?:not|isnt|never|cannot)\s+(?:\w+\s+)?(?:yes|no|true|false)\b")


class Answer(NamedTuple):
    """The part of a response that answers, and how it was found: `tag`, `open_tag`, `after_think` or `whole`."""

    text: str
    method: str


def format_ok(text: str) -> bool:
    """Whether `text` is `<think>…</think><answer>…</answer>`: each tag once, white space around and between allowed."""
    return _FORMAT.fullmatch(text) is not None and all(text.count(tag) == 1 for tag in _TAGS)


def extract_answer(text: str) -> Answer:
    """The last complete `<answer>` tag; else what follows a tag left open, or the thought; else the whole text."""
    close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, close) if close >= 0 else -1
    if start >= 0:
        start += len("<answer>")
        return Answer(text[start : text.find("</answer>", start)].strip(), "tag")
    for tag, method in (("<answer>", "open_tag"), ("</think>", "after_think")):
        if tag in text:
            return Answer(text.rpartition(tag)[2].strip(), method)
    return Answer(text.strip(), "whole")


def parse_choice(text: str, options: Sequence[str] = ()) -> str | None:
    r"""The upper-case letter of the option meant by `B`, `B.`, `(B)`, `**B**`, `\boxed{B}`, `B. text`, `答案：B`,
    "the answer is B", or by its text.

    With `options`, only their letters count; options may bring their own. Several options named at once mean none, nor
    does one that is denied, or a letter with another option's text.
    """
    return read_choice(text, options).value


def parse_choices(text: str, options: Sequence[str] = ()) -> frozenset[str] | None:
    """The letters of all options meant by `A, C`, `(A) and (C)`, `A. text, C. text` or `AC`; one as in `parse_choice`.

    With `options`, a letter beyond them makes the whole unreadable.
    """
    return read_choices(text, options).value


def read_yesno(text: str) -> Reading:
    """`yes` or `no`; see `parse_yesno`."""
    words = normalize_text(text).split()
    if words and words[0] in _YES_NO:
        return Reading(_YES_NO[words[0]])
    if words and (chinese := _CHINESE_YES_NO.match(words[0])):
        return Reading("no" if chinese.group(1) else "yes")
    found = {_YES_NO[word] for word in words if word in _YES_NO}
    if len(found) > 1 or _DENIED.search(" ".join(words)):
        return AMBIGUOUS
    return Reading(found.pop()) if found else NOTHING


def parse_yesno(text: str) -> str | None:
    """`yes` or `no`: the first word, or the only one of the two that occurs; `true` and `false`, 是 and 否 as well."""
    return read_yesno(text).value


def parse_decimal(text: str) -> Decimal | None:
    """The number in `text` with the places it is written with; otherwise as `parse_number`."""
    return read_number(text).value


def parse_number(text: str) -> float | None:
    r"""The number that `text` gives: digits, words, `1,234.5`, `3,5`, `1/2`, `10²`, minutes and seconds `2:30`.

    Of several, the one that is called the answer or total or follows `=`, or that of a sentence of its own, or the
    first of "3 out of 5"; else None, as for "5-6".
    """
    number = parse_decimal(text)
    return None if number is None else float(number)


def parse_span(text: str) -> Span | None:
    """The last `start to end` in seconds; also `-`, `→`, `,`, mm:ss, hh:mm:ss, the times of SRT, units, `<t>` tags and
    {"start": …, "end": …}.
    """
    return read_span(text).value


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Every `[x1,y1,x2,y2]`, `(x1,y1,x2,y2)` or `(x1,y1),(x2,y2)` in order; () where none or more than one reading."""
    return read_boxes(text).value or ()


def read_text(text: str) -> Reading:
    r"""The text without what `normalize_text` removes; what is in `\boxed{}` alone."""
    return Reading(normalize_text(text) or None)
