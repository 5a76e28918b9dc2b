"""Which number an answer gives: in digits or words, grouped, as a fraction, a power or a time."""

import math
import re
from bisect import bisect_left, bisect_right
from decimal import Decimal, DecimalException
from typing import NamedTuple

from jvlmm.rewards.plain_text import AMBIGUOUS, NOTHING, Reading, plain

_SIMPLE = r"(?:\d+(?:\.\d+)?|\.\d+)"
_GAP = "[ '_\u00a0\u2009\u202f]"
_FORMS = re.compile(
    r"(?<![\w.^])(?<!\d,)(?P<sign>[-+])?(?:"
    r"(?P<time>\d+(?::\d{2}){1,2}(?:\.\d+)?)"
    r"|(?P<whole>\d+)\s+(?P<part>\d+/\d+)"
    r"|(?P<over>\d+(?:\.\d+)?\s?/\s?\d+(?:\.\d+)?)"
    rf"|(?P<power>{_SIMPLE}\^-?\d{{1,3}})(?!\d)"
    rf"|(?P<grouped>[1-9]\d{{0,2}}(?:(?:,\d{{3}})+|(?:{_GAP}\d{{3}})+)(?!\d)(?:\.\d+)?)(?!,\d)"
    r"|(?P<continental>\d{1,3}(?:\.\d{3})+,\d+|\d+,\d+)"
    rf"|(?P<simple>{_SIMPLE}(?:[eE][-+]?\d{{1,3}}\b)?)"
    r")(?P<scale>\s+(?:hundred|thousand|million|billion|dozen)\b|[kK]\b)?"
)
_BROKEN = re.compile(r"\s?/\s?\d|[.,:]\d|\^")  # after a number: a part of something that is none
_FIRST_DASH = re.compile(r"[-–](\s*)")
_MARKER = re.compile(
    r"(?:\b(?:answer|total|result|sum|count)s?\b(?:\s+(?:is|are|of|equals))?|\b(?:so|thus|hence|therefore)\b|答案|一共|共|=)"
    r"\s*(?:是|为)?[:=]?",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?。]+(?=\s|$)|\n+")
_OF = re.compile(
    r"(?:(?!\b(?:and|or|to|but|plus|minus|then|versus|vs)\b)[^,;:/+=~\-–—→\d])*?"
    r"\b(?:in|out of|of|per|within|during|at|from|after|over|for|on|by|every)\b"
    r"(?:(?!\b(?:and|or|to|but|plus|minus|then|versus|vs)\b)[^,;:/+=~\-–—→\d])*",
    re.IGNORECASE,
)

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_VALUES = {word: value for value, word in enumerate(_UNITS)} | {w: 10 * n for n, w in enumerate(_TENS, start=2)}
_ALL = "|".join([*_VALUES, *_SCALES])
_IN_WORDS = re.compile(
    rf"\b(?:(?P<sign>minus|negative)\s+)?(?P<words>(?:{_ALL}|half)(?:(?:\s+|-|\s+and\s+(?:a\s+)?)(?:{_ALL}|half))*)\b"
    r"(?P<fraction>[\s-]+(?:thirds?|quarters?|fourths?|fifths?|tenths?))?",
    re.IGNORECASE,
)


class _Found(NamedTuple):
    value: Decimal | None  # None: something of digits that is no number
    start: int
    end: int


def read_number(text: str) -> Reading:
    """A Decimal with the places it is written with; see `parsing.parse_number`."""
    text = plain(text).strip()
    found = _in_digits(text) or _in_words(text)
    if not found:
        return NOTHING
    # what follows "answer", "total", "=" goes before all else, then what stands in a sentence of its own
    sentences = _sentences(text)
    starts = [number.start for number in found]
    for marker in reversed(list(_MARKER.finditer(text))):
        upto = sentences[bisect_right(sentences, (marker.end(), len(text))) - 1][1]
        if said := found[bisect_left(starts, marker.end()) : bisect_left(starts, upto)]:
            return _one_of(said, text)
    whole = set(sentences)
    return _one_of([number for number in found if number[1:] in whole] or found, text)


def _one_of(found: list[_Found], text: str) -> Reading:
    values = [number.value for number in found]
    if None in values:
        return AMBIGUOUS
    if len(set(values)) > 1:
        between = text[found[0].end : found[1].start]
        if not _OF.fullmatch(between):  # "3 of 5" is 3, "3 objects in 5 s" too; "3 or 5" may be either
            return AMBIGUOUS
    value = values[0]
    return Reading(value) if math.isfinite(float(value)) else NOTHING


def _sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each, without white space around it."""
    borders = [0, *(place for found in _SENTENCE.finditer(text) for place in found.span()), len(text)]
    pieces = [(start, text[start:end]) for start, end in zip(borders[::2], borders[1::2], strict=True)]
    return [(at + len(piece) - len(piece.lstrip()), at + len(piece.rstrip())) for at, piece in pieces]


def _in_digits(text: str) -> list[_Found]:
    found = []
    for match in _FORMS.finditer(text):
        value = None if _BROKEN.match(text, match.end()) else _value(match)
        start = match.start()
        if value is not None and match["sign"] and text[start - 1 : start].isdigit():
            value = abs(value)  # no sign: "3-4" are two numbers
        elif value is not None and not match["sign"] and (dash := _FIRST_DASH.match(text)) and dash.end() == start:
            # at the very beginning "–3" is minus three, and "- 3" may be that or one of a list
            value, start = (None if dash.group(1) else -value), 0
        found.append(_Found(value, start, match.end()))
    return found


def _value(match: re.Match[str]) -> Decimal | None:
    try:
        value = _magnitude(match)
    except (DecimalException, ZeroDivisionError):
        return None
    if scale := (match["scale"] or "").strip().casefold():
        value *= 1000 if scale == "k" else _SCALES[scale]
    return -value if match["sign"] == "-" else value


def _magnitude(match: re.Match[str]) -> Decimal:
    if time := match["time"]:
        total = Decimal(0)
        for part in time.split(":"):
            total = total * 60 + Decimal(part)
        return total
    if match["whole"]:
        return Decimal(match["whole"]) + _quotient(match["part"])
    if match["over"]:
        return _quotient(match["over"])
    if match["power"]:
        base, exponent = match["power"].split("^")
        return Decimal(base) ** int(exponent)
    if match["grouped"]:
        return Decimal(re.sub(rf",|{_GAP}", "", match["grouped"]))
    if match["continental"]:
        return Decimal(match["continental"].replace(".", "").replace(",", "."))
    return Decimal(match["simple"])


def _quotient(fraction: str) -> Decimal:
    over, under = (Decimal(part.strip()) for part in fraction.split("/"))
    return over / under


def _in_words(text: str) -> list[_Found]:
    """Numbers that are spelt out; "one" beside others is a pronoun."""
    found = []
    for match in _IN_WORDS.finditer(text):
        value = None if match["fraction"] else _spelt(re.split(r"[\s-]+", match["words"].casefold()))
        value = -value if value is not None and match["sign"] else value
        found.append(_Found(value, match.start(), match.end()))
    others = [number for number in found if number.value != 1]
    return others or found


def _spelt(words: list[str]) -> Decimal | None:
    """The value of "two hundred and five"; None where the words make no one number ("three four")."""
    total, group, last = Decimal(0), Decimal(0), math.inf
    for word in words:
        if word in ("and", "a"):
            continue
        if word == "half":
            return total + group + Decimal("0.5") if words[-1] == word else None
        if word in _SCALES:
            scale = _SCALES[word]
            group = max(group, Decimal(1)) * scale
            if scale >= 1000:
                total, group = total + group, Decimal(0)
            last = scale
            continue
        value = _VALUES[word]
        fits = value < last if last >= 100 else (last >= 20 and 0 < value < 10)
        if not fits:
            return None
        group, last = group + value, value
    return total + group
