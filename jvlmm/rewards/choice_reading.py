"""Which options an answer names, by letter or by text.

No letter is preferred: a letter is read by its form alone, and texts are compared with all options alike.
"""

import re
import string
from collections.abc import Iterator, Sequence

from jvlmm.rewards.plain_text import AMBIGUOUS, NOTHING, Reading, normalize_text, plain

_OPEN, _CLOSE = r"[(\[{<\"'*_`]*", r"[)\]}>\"'*_`]*"
_BARE = re.compile(rf"{_OPEN}([A-Za-z]){_CLOSE}[.:,;!]?{_CLOSE}")
_LABEL = re.compile(r"[(\[{<]([A-Za-z])[)\]}>][.:,]?|([A-Za-z])(?:[.:)](?![A-Za-z]\.)|\s*,|\s+[-–—](?=\s)|\s*\n)")
_SPACED = re.compile(r"([A-Z])\s+(?=\S)")
_MORE = re.compile(
    r"\s*(?:,?\s*(?:and|or|both)\b|[,/&;+]|和|或|与)\s*(?:option\s+)?[(\[]?[A-Za-z](?!\w)", re.IGNORECASE
)
_ANSWER = r"(?:answers?|答案)"
_KIND = r"(?:options?|choices?|sentences?|captions?|descriptions?|statements?)"
_OPTION = rf"(?:{_KIND}|选项|选择|选)"
_LEAD = re.compile(
    rf"(?:so|thus|therefore|hence)?,?\s*(?:the|my|a)?\s*(?:(?:correct|right|best|final)\s+)*(?:{_ANSWER}|{_OPTION})\b"
    r"\s*(?:(?:is|are|should be|would be|是|为|应该)\s*)?[:=]?\s*"
    rf"|(?:答案|{_OPTION})\s*(?:是|为|应该是|应为|选)?\s*[:=]?\s*",
    re.IGNORECASE,
)
_REASON = r"(?:because|since|as|for|is|was|which|due|given|so|but|not|based|where|when|rather|instead|then|i|it|the)\b"
_LETTER = (
    rf"[(\[{{\"'*]*(?:([A-Z])(?=[)\]}}.,;:!?\"'*]|\s*$|\s*\n|\s+{_REASON})"
    r"|([a-z])(?=[)\]}.,;:!?\"'*](?![A-Za-z])|\s*$|\s*\n))"
)
_SAID_ANSWER = re.compile(
    rf"(?i:{_ANSWER}(?:\s+(?:is|should be|would be)|是|为|选|应为)?\s*[:=]?\s*(?:option\s+)?){_LETTER}"
    r"|(?<![\w'])([A-Z])[)\]]?\s+is\s+(?:the\s+)?(?:most\s+|only\s+)?(?:correct|right|best|answer)\b"
)
_SAID_OPTION = re.compile(
    rf"(?i:{_OPTION}(?:\s+is|是)?\s*[:=]?\s*|\b(?:is|was|be|choose|chose|select|pick|think|believe|guess|say)\s+){_LETTER}"
)
_NOT = re.compile(  # in plain text, and where normalisation has taken the apostrophes
    r"(?:\b(?:not|cannot|never|no|neither|nor|without|except)|n't"
    r"|\b(?:is|are|was|were|do|does|did|ca|could|wo|would|should|has|have|had)nt"
    r"|不是?|别|非|没有?)(?:\s+\w+){0,2}\s*$",
    re.IGNORECASE,
)
_THREE_WORDS = 60  # characters
_LABELLED = re.compile(r"(?<!\w)[(\[]?([A-Z])[)\].:](?!\w)")
_OWN_LABEL = re.compile(
    rf"\s*(?:{_KIND}\s+)?(?:\(([A-Za-z]|\d{{1,2}})\)|\[([A-Za-z]|\d{{1,2}})\]|([A-Za-z]|\d{{1,2}})[.:)](?!\d))\s*(?=\S)",
    re.IGNORECASE,
)
_NUMBERED = re.compile(rf"{_KIND}\s*[(\[]?(\d{{1,2}})[)\]]?(?:[.:)](?!\d)|\s*$)", re.IGNORECASE)  # "Option 1"
_NUMBER = re.compile(r"[(\[]?(\d{1,2})(?:[)\]]|[.:](?!\d))*(?:\s|$)")
_UNSPACED = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")


def without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """The texts of options that bring their labels ("A. red", "(B) blue", "Sentence A: red", "1. red"); as they are
    where one lacks its own.
    """
    labels = [_OWN_LABEL.match(plain(option)) for option in options]
    if len(options) > 26 or None in labels or not _are_labels([_letter_of(label) for label in labels]):
        return tuple(options)
    return tuple(plain(option)[label.end() :] for option, label in zip(options, labels, strict=True))


def _are_labels(found: list[str]) -> bool:
    return found in (list(string.ascii_uppercase[: len(found)]), [str(n + 1) for n in range(len(found))])


def read_choice(text: str, options: Sequence[str] = ()) -> Reading:
    """The upper-case letter of the one option that is named; see `parsing.parse_choice`."""
    letters = string.ascii_uppercase[: len(options)] if options else string.ascii_uppercase
    bare, text = without_letters(options), plain(text.strip()).strip().strip("*_`\"'$").strip()
    numbered = _NUMBERED.match(text) if text not in options else None
    if not numbered and bare != tuple(options) and plain(options[0]).lstrip("( [")[:1].isdigit():
        numbered = _NUMBER.match(text)  # options that call themselves 1, 2, 3
    if numbered and 1 <= int(numbered.group(1)) <= len(options):
        return Reading(letters[int(numbered.group(1)) - 1])
    options = bare
    normal_options = [normalize_text(option) for option in options]
    whole = _read_part(text, letters, options, normal_options)
    if whole.value or whole.ambiguous:
        return whole
    # "The answer is B. right" is read as "B. right" is
    lead = _LEAD.match(text)
    if lead and lead.end() < len(text):
        part = _read_part(text[lead.end() :], letters, options, normal_options)
        if part.value or part.ambiguous:
            return part
    # a letter somewhere in the text: what is called the answer goes before what is called an option
    for pattern in (_SAID_ANSWER, _SAID_OPTION):
        said = _said(pattern, text, letters)
        if said.value or said.ambiguous:
            return said
    return _named(text, letters, normal_options)


def read_choices(text: str, options: Sequence[str] = ()) -> Reading:
    """The letters of all options that are named, a frozenset; see `parsing.parse_choices`."""
    letters = frozenset(string.ascii_uppercase[: len(options)] if options else string.ascii_uppercase)
    unmarked = plain(text).strip()
    lead = _LEAD.match(unmarked)
    unmarked = unmarked[lead.end() :] if lead else unmarked
    words = [word for word in re.findall(r"\w+", re.sub("[和与]", " and ", unmarked)) if word.casefold() != "and"]
    if len(words) > 1 and all(len(word) == 1 for word in words):
        named = frozenset(word.upper() for word in words)
    elif len(named := frozenset(_LABELLED.findall(unmarked))) < 2:
        one = read_choice(text, options)
        if one.value:
            return Reading(frozenset(one.value))
        named = frozenset(words[0] if len(words) == 1 else ())
        if one.ambiguous and not named:
            return AMBIGUOUS
    return Reading(named) if named and named <= letters else NOTHING


def _read_part(text: str, letters: str, options: Sequence[str], normal_options: list[str]) -> Reading:
    """What the text says from its first word on: a letter, the text of an option, or both."""
    bare = _BARE.fullmatch(text)
    if bare and bare.group(1).upper() in letters:
        return Reading(bare.group(1).upper())
    folded = [" ".join(option.casefold().rstrip(".!").split()) for option in map(plain, options)]
    same = " ".join(text.casefold().rstrip(".!").split())
    if same and folded.count(same) == 1:  # articles included: "A man" is "a man"
        return Reading(letters[folded.index(same)])
    label = _LABEL.match(text)
    if label and (letter := _letter_of(label)) in letters:
        rest = text[label.end() :]
        comma = label.group().endswith(",") and _BARE.fullmatch(rest.strip())
        if comma or _MORE.match(rest) or _other_labelled(letter, rest, letters, normal_options):
            return AMBIGUOUS
        return Reading(letter)
    spaced = _SPACED.match(text)
    if spaced and spaced.group(1) in letters:
        own, rest = letters.index(spaced.group(1)), normalize_text(text[spaced.end() :])
        if _MORE.match(text[spaced.end(1) :]):
            return AMBIGUOUS
        others = [option for at, option in enumerate(normal_options) if at != own]
        if own < len(normal_options) and normal_options[own] and f"{rest} ".startswith(f"{normal_options[own]} "):
            return Reading(spaced.group(1))
        if rest and rest in others:  # "B left" where left is A: the letter or the text?
            return AMBIGUOUS
    normal = normalize_text(text)
    if normal and normal_options.count(normal) == 1:
        return Reading(letters[normal_options.index(normal)])
    # an option's text, and then a sentence about it: "No, it does not"
    first = normalize_text(re.split(r"[,.;:!?\n]", text, maxsplit=1)[0])
    if first and normal_options.count(first) == 1:
        return Reading(letters[normal_options.index(first)])
    return NOTHING


def _other_labelled(letter: str, text: str, letters: str, normal_options: list[str]) -> bool:
    """Whether another option stands in the text with letter and text: "C. green" after "A. red"."""
    for found in _LABELLED.finditer(text):
        at = letters.find(found.group(1))
        if found.group(1) == letter or not 0 <= at < len(normal_options) or not normal_options[at]:
            continue
        if f"{normalize_text(text[found.end() :])} ".startswith(f"{normal_options[at]} "):
            return True
    return False


def _said(pattern: re.Pattern[str], text: str, letters: str) -> Reading:
    found = [match for match in pattern.finditer(text) if _letter_of(match) in letters]
    if any(_denied(text, match.start()) or _MORE.match(text[match.end() :]) for match in found):
        return AMBIGUOUS
    said = {_letter_of(match) for match in found}
    return Reading(said.pop()) if len(said) == 1 else AMBIGUOUS if said else NOTHING


def _named(text: str, letters: str, normal_options: list[str]) -> Reading:
    """The one option whose text stands in the text; not where it is denied there."""
    normal = normalize_text(text)
    places = [list(_mentions(option, normal)) for option in normal_options]
    named = [at for at, found in enumerate(places) if found]
    if len(named) != 1:
        return AMBIGUOUS if named else NOTHING
    denied = any(_denied(normal, start) for start in places[named[0]])
    return AMBIGUOUS if denied else Reading(letters[named[0]])


def _denied(text: str, start: int) -> bool:
    """Whether one of the three words before this place denies what stands there."""
    return _NOT.search(text[max(0, start - _THREE_WORDS) : start]) is not None


def _mentions(option: str, normal: str) -> Iterator[int]:
    """Where the option stands in the text as whole words; scripts without spaces have no words."""
    if not option:
        return
    edges = ("" if _UNSPACED.match(option[0]) else r"(?<!\S)", "" if _UNSPACED.match(option[-1]) else r"(?!\S)")
    yield from (found.start() for found in re.finditer(edges[0] + re.escape(option) + edges[1], normal))


def _letter_of(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).upper()
