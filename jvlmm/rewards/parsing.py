"""Reading an answer out of what a model wrote: total functions of strings, None where there is nothing to read."""

import math
import re
import string
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

Span = tuple[float, float]  # start, end in seconds, as written: the end may precede the start
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels

_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,3}\b)?")
_NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_TIME = r"(?:\d+(?::\d{1,2}){1,2}(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_SPAN = re.compile(
    rf"(?<![\w.:])(-?{_TIME})\s*(?:s|secs?|seconds?)?\s*(?:to|and|until|till|-|–|—|,)\s*({_TIME})(?![\d:])",
    re.IGNORECASE,
)
_FLOAT = r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*"
_BOX = re.compile(rf"[\[(]{_FLOAT},{_FLOAT},{_FLOAT},{_FLOAT}[\])]")
_BARE_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:,]?")
_LEADING_LETTER = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[.:)])")
_LABELLED_LETTER = re.compile(r"(?<!\w)[(\[]?([A-Z])[)\].:](?!\w)")
_STATED_LETTER = re.compile(r"\b(?i:answer|option|choice)(?:\s+is)?\s*:?\s*[(\[]?([A-Z])(?![\w'])")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


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


def normalize_text(text: str) -> str:
    """Case, articles, punctuation and runs of white space removed (the normalisation of SQuAD, on NFKC text)."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def parse_choice(text: str, options: Sequence[str] = ()) -> str | None:
    """The upper-case letter of the option meant by `B`, `B.`, `(B)`, `[B]`, `B. text`, "the answer is B" or its text.

    With `options`, only their letters count. Several options named at once mean none.
    """
    letters = string.ascii_uppercase[: len(options)] if options else string.ascii_uppercase
    text = text.strip().strip("*`\"'").strip()

    def known(match: re.Match[str] | None) -> str | None:
        letter = next((g for g in match.groups() if g), "").upper() if match else ""
        return letter if letter and letter in letters else None

    if letter := known(_BARE_LETTER.fullmatch(text)):
        return letter
    if options.count(text) == 1:
        return letters[options.index(text)]
    if letter := known(_LEADING_LETTER.match(text)):  # before normalisation, which takes "A." for an article
        return letter
    normal = normalize_text(text)
    option_texts = [normalize_text(option) for option in options]
    if normal and option_texts.count(normal) == 1:
        return letters[option_texts.index(normal)]
    stated = {letter for match in _STATED_LETTER.finditer(text) if (letter := known(match))}
    if len(stated) == 1:
        return stated.pop()
    named = [i for i, option in enumerate(option_texts) if option and f" {option} " in f" {normal} "]
    return letters[named[0]] if len(named) == 1 and not stated else None


def parse_choices(text: str, options: Sequence[str] = ()) -> frozenset[str] | None:
    """The letters of all options meant by `A, C`, `(A) and (C)`, `A. text, C. text` or `AC`; one as in `parse_choice`.

    With `options`, a letter beyond them makes the whole unreadable.
    """
    letters = frozenset(string.ascii_uppercase[: len(options)] if options else string.ascii_uppercase)
    words = [word for word in re.findall(r"\w+", text) if word.casefold() != "and"]
    if len(words) > 1 and all(len(word) == 1 for word in words):
        named = frozenset(word.upper() for word in words)
    elif len(named := frozenset(_LABELLED_LETTER.findall(text))) < 2:
        if letter := parse_choice(text, options):
            return frozenset(letter)
        named = frozenset(words[0] if len(words) == 1 else ())
    return named if named and named <= letters else None


def parse_yesno(text: str) -> str | None:
    """`yes` or `no`: the first word, or the only one of the two that occurs."""
    words = normalize_text(text).split()
    if words and words[0] in ("yes", "no"):
        return words[0]
    found = {"yes", "no"} & set(words)
    return found.pop() if len(found) == 1 else None


def parse_decimal(text: str) -> Decimal | None:
    """The last number in `text` with the places it is written with; otherwise as `parse_number`."""
    if (word := normalize_text(text)) in _NUMBER_WORDS:
        return Decimal(_NUMBER_WORDS.index(word))
    found = [match.group() for match in _NUMBER.finditer(text)]
    digits = found[-1].replace(",", "") if found else "nan"
    return Decimal(digits) if math.isfinite(float(digits)) else None


def parse_number(text: str) -> float | None:
    """The last number in `text`; thousands may be grouped by commas, zero to twelve may be spelt out."""
    number = parse_decimal(text)
    return None if number is None else float(number)


def _seconds(text: str) -> float:
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    total = 0.0
    for part in digits.split(":"):
        total = total * 60 + float(part)
    return sign * total


def parse_span(text: str) -> Span | None:
    """The last `start to end` in seconds; also `-`, `,`, mm:ss, hh:mm:ss, unit letters and `<t>` tags."""
    found = _SPAN.findall(re.sub(r"</?t>", " ", text))
    span = (_seconds(found[-1][0]), _seconds(found[-1][1])) if found else (math.nan, math.nan)
    return span if all(map(math.isfinite, span)) else None


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Every `[x1,y1,x2,y2]` or `(x1,y1,x2,y2)` in order."""
    boxes = (tuple(map(float, found)) for found in _BOX.findall(text))
    return tuple(box for box in boxes if all(map(math.isfinite, box)))
