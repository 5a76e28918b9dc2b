"""JSON that every reader takes: no NaN, no Infinity, no half surrogates.

`json.dumps` writes what is no JSON: NaN and Infinity, and, with `ensure_ascii=False`, characters that no file takes.
All JSON files of a run are written through these functions.
"""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON text in UTF-8's characters; numbers that are not finite are null.

    A half surrogate, which UTF-8 cannot hold, is written as its escape, so that reading gives it back.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:  # rare, so that the walk over all values is too
        text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # inside of JSON strings the escape is JSON's own


def finite(value: Any) -> Any:
    """Returns a copy of JSON-ready values in which None stands for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def printable(text: str, limit: int = 200) -> str:
    """Returns a text on one line for people to read: control characters and half surrogates escaped, its end cut off.

    What comes from a data set may hold line breaks and terminal sequences.
    """
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")
