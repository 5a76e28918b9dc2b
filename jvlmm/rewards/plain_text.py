"""Texts without what typography and markup add to them: the ground on which all answers are read and compared."""

import re
import string
import unicodedata
from typing import Any, NamedTuple

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_POWER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_SAME = str.maketrans(
    {
        **dict.fromkeys("−‐‒﹣", "-"),
        **dict.fromkeys("‘’‛", "'"),
        **dict.fromkeys("“”„«»「」『』", '"'),
        **{"⁄": "/", "、": ",", "。": ".", "【": "[", "】": "]", "〔": "[", "〕": "]"},
    }
)
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" \1/\2"),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|bm)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\(?:[(),;!\[\]]|left|right|displaystyle)"), ""),
    (re.compile(r"\\([$%#&_])"), r"\1"),
    (re.compile(r"(?<!\d)\*\*|\*\*(?!\d)"), ""),
)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")

_ARTICLES = re.compile(r"\b(?:a|an|the)\b(?![-+#])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_KEPT = re.compile(
    r"(?<=\d)\s*[-+*/×÷]\s*(?=[\d.])"  # between numbers: 3-4 is not 3 4
    r"|(?<=\w)\s*[+<>=^]\s*(?=[\w.+-])"  # between operands: x<5 is not x>5
    r"|(?<=[\w+#])[+#]"  # of names: C++ is not C#
    r"|(?<=(?<!\w)[a-z])-(?![\w-])"  # of marks: A- is not A
    r"|(?<![\w.)\]-])-(?=\.?\d)"  # signs
    r"|(?<=\d)[.,:](?=\d)|(?<![\w.])\.(?=\d)"  # inside of numbers: 3.5 is not 35
)


class Reading(NamedTuple):
    """What was read. `value` is None where nothing could be; `ambiguous` says that several readings were possible."""

    value: Any
    ambiguous: bool = False


NOTHING = Reading(None)
AMBIGUOUS = Reading(None, ambiguous=True)


def plain(text: str) -> str:
    r"""The text in NFKC, with ASCII for the signs that look like it, and without the markup of LaTeX and Markdown.

    Fractions become a/b, powers a^b. Where something is `\boxed{}`, only that remains; several are joined by commas.
    """
    text = _POWER.sub(lambda found: "^" + found.group().translate(_SUPERSCRIPTS), text)
    text = "".join(f" {char}" if "⁄" in unicodedata.normalize("NFKC", char) and char != "⁄" else char for char in text)
    text = unicodedata.normalize("NFKC", text).translate(_SAME)
    for pattern, instead in _LATEX:
        text = pattern.sub(instead, text)
    if boxed := _BOXED.findall(text):
        text = ", ".join(dict.fromkeys(content.strip() for content in boxed))
    return text


def normalize_text(text: str) -> str:
    """Case, articles, punctuation and runs of white space removed, as SQuAD does, from the `plain` text.

    What tells answers apart is kept: signs, points and operators of numbers, `+` and `#` of names. An article that is
    all there is stays.
    """
    normal = _normalized(text)
    while (again := _normalized(normal)) != normal:
        normal = again
    return normal


def _normalized(text: str) -> str:
    text = re.sub(r"(?<=\w)'(?=\w)", "", plain(text).casefold())
    text = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)
    pieces, end = [], 0
    for found in _KEPT.finditer(text):
        pieces += [_without_punctuation(text[end : found.start()]), found.group().strip()]
        end = found.end()
    words = "".join([*pieces, _without_punctuation(text[end:])])
    return " ".join((_ARTICLES.sub(" ", words).strip() or words).split())


def _without_punctuation(text: str) -> str:
    return "".join(" " if char in string.punctuation or unicodedata.category(char)[0] == "P" else char for char in text)
