"""Which span of time an answer gives: start and end in seconds, in the forms people and files write them."""

import math
import re
from typing import NamedTuple

from jvlmm.rewards.plain_text import AMBIGUOUS, NOTHING, Reading, plain

_HOUR, _MINUTE, _SECOND = r"(?:hours?|hrs?|h|小时)", r"(?:minutes?|mins?|m|分钟?)", r"(?:seconds?|secs?|s|秒钟?)"
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_TIME = re.compile(
    r"(?<![A-Za-z0-9_.:])(?<!\d,)(?:"
    rf"(?P<clock>\d+(?::\d{{1,2}}){{1,2}}(?:[.]\d+|,\d{{3}}(?!\d))?)(?:\s*{_SECOND}(?![A-Za-z]))?"
    rf"|(?:(?P<h>\d+)\s*{_HOUR}\s*)?(?P<m>\d+)\s*{_MINUTE}\s*(?P<s>{_NUMBER})\s*{_SECOND}(?![A-Za-z])"
    rf"|(?P<number>{_NUMBER}(?:[eE][-+]?\d{{1,3}})?)"
    rf"(?:\s*(?:(?P<hours>{_HOUR})|(?P<minutes>{_MINUTE})|(?P<seconds>{_SECOND}))(?![A-Za-z]))?"
    r")(?![A-Za-z0-9_:]|\s*%|\.\d)"
)
_AT = r"(?:(?:the\s+)?(?:seconds?|timestamps?|time|第|t\s*=)\s*)?"
_STRONG = re.compile(rf"\s*,?\s*(?:to|until|till|through|-+>|→|[-–—~]|到|至)\s*{_AT}", re.IGNORECASE)
_WEAK = re.compile(rf"\s*(?:and|[,;]|和)\s*{_AT}|\s+", re.IGNORECASE)
_NAMED = re.compile(
    r"\b(?:(?P<start>start|begin|onset)|(?P<end>end|stop|finish))(?:s|ning|ing|es)?(?:[\s_-]?(?:time|second|sec|at|s))*"
    r"\"?\s*(?:[:=]|\bis\b|\bat\b|\s)\s*\"?\s*$",
    re.IGNORECASE,
)
_NAME_LENGTH = 40  # characters before a time in which its name may stand
_BRACKETS = re.compile(r"[\[(]\s*$"), re.compile(r"\s*[\])]")


class _Time(NamedTuple):
    seconds: float
    start: int
    end: int
    unit: float | None  # seconds that are one of the unit written; None where none is


def read_span(text: str) -> Reading:
    """(start, end) in seconds; see `parsing.parse_span`."""
    text = re.sub(r"</?t>", " ", plain(text))
    found = _times(text)
    named = [_NAMED.search(text[max(0, time.start - _NAME_LENGTH) : time.start]) for time in found]
    starts = [time.seconds for time, name in zip(found, named, strict=True) if name and name["start"]]
    ends = [time.seconds for time, name in zip(found, named, strict=True) if name and name["end"]]
    if starts and ends:  # {"start": 3, "end": 7}
        return _finite(starts[-1], ends[-1]) if len(starts) == len(ends) else AMBIGUOUS
    gaps = [text[one.end : other.start] for one, other in zip(found, found[1:], strict=False)]
    strong = [_STRONG.fullmatch(gap.rstrip("-") if gap.strip() != "-" else gap) is not None for gap in gaps]
    pairs = [at for at, joined in enumerate(strong) if joined]
    if any(strong[at + 1 : at + 2] == [True] for at in pairs):  # 3-5-7
        return AMBIGUOUS
    if not pairs:
        weak = [_WEAK.fullmatch(gap) is not None for gap in gaps]
        runs = [
            at
            for at, joined in enumerate(weak)
            if joined and not any(weak[max(0, at - 1) : at] + weak[at + 1 : at + 2])
        ]
        pairs = [at for at in runs if gaps[at].strip() or _in_brackets(text, found[at], found[at + 1])]
        if not pairs:
            return AMBIGUOUS if any(weak) else NOTHING
    one, other = found[pairs[-1]], found[pairs[-1] + 1]
    # the unit at the end is that of both: "1 to 2 minutes"
    start = one.seconds * (other.unit if one.unit is None and other.unit else 1.0)
    return _finite(start, other.seconds)


def _times(text: str) -> list[_Time]:
    found: list[_Time] = []
    for match in _TIME.finditer(text):
        seconds, unit = _seconds(match)
        start = match.start()
        between = text[found[-1].end if found else 0 : start]
        # a minus sign, where the dash does not join two times
        if re.search(r"(?<![\w-])-$", between) and not (found and between.strip() == "-"):
            seconds, start = -seconds, start - 1
        found.append(_Time(seconds, start, match.end(), unit))
    return found


def _seconds(match: re.Match[str]) -> tuple[float, float | None]:
    if clock := match["clock"]:
        total = 0.0
        for part in clock.replace(",", ".").split(":"):
            total = total * 60 + float(part)
        return total, 1.0
    if match["m"]:
        return float(match["h"] or 0) * 3600 + float(match["m"]) * 60 + float(match["s"]), 1.0
    unit = 3600.0 if match["hours"] else 60.0 if match["minutes"] else 1.0 if match["seconds"] else None
    return float(match["number"]) * (unit or 1.0), unit


def _in_brackets(text: str, one: _Time, other: _Time) -> bool:
    return bool(_BRACKETS[0].search(text[max(0, one.start - 4) : one.start]) and _BRACKETS[1].match(text, other.end))


def _finite(start: float, end: float) -> Reading:
    return Reading((start, end)) if math.isfinite(start) and math.isfinite(end) else NOTHING
