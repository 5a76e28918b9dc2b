"""The neutral record as JSON lines: read with every row checked, written with paths relative to the file."""

import json
import math
import os
import string
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from jvlmm.data.example import AnswerType, Example, Media
from jvlmm.data.rejections import Rejected, Rejections
from jvlmm.errors import DataError

FIELDS = tuple(field.name for field in fields(Example))


@dataclass(frozen=True)
class Records:
    """What a file holds."""

    examples: tuple[Example, ...]
    rejected: tuple[Rejected, ...]  # rows that cannot be used; the reason starts with the line number


def read_examples(
    path: str | Path, rejected_path: str | Path | None = None, root: str | Path | None = None
) -> tuple[Example, ...]:
    """The usable examples of a file; rows that cannot be used are listed in `rejected_path`.

    Without `rejected_path` the first such row is a DataError, so that none disappears. See `read_records`.
    """
    records = read_records(path, root)
    if records.rejected and rejected_path is None:
        raise DataError(f"{path}: {records.rejected[0].reason}; mend the row, `jvlmm data check` lists all of them")
    rejections = Rejections(rejected_path)
    for rejected in records.rejected:
        rejections.add(rejected)
    return records.examples


def read_records(path: str | Path, root: str | Path | None = None) -> Records:
    """Read a file of records, one JSON object a line. Media paths become absolute.

    Media are relative to `root`, by default the file's folder, and must lie in it, links resolved; whether
    they exist shows when they are opened. Fields the record does not know go to `meta`. A row that breaks
    a rule is returned among the rejected with its line number and the reason; ids must be unique.

    Raises DataError when the file cannot be opened.
    """
    path = Path(path)
    root = Path(os.path.realpath(path.parent if root is None else root))
    examples: dict[str, Example] = {}
    rejected = []
    for number, line in _lines(path):
        row: Any = None
        try:
            row = json.loads(line.decode("utf-8"))
            example = example_of_row(row, root)
            if example.id in examples:
                raise ValueError(f"id {example.id!r} stands on an earlier line too; ids must be unique")
            examples[example.id] = example
        except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
            row_id = row.get("id") if isinstance(row, dict) else None
            name = str(row_id) if isinstance(row_id, str | int) else f"{path.name}:{number}"
            rejected.append(Rejected(name, f"line {number}: {error}"))
    return Records(tuple(examples.values()), tuple(rejected))


def write_examples(path: str | Path, examples: Iterable[Example]) -> int:
    """Write records that `read_examples` reads back equal; returns their number.

    The file appears complete or not at all. Raises DataError when a media file lies
    outside the folder of `path`, or the file cannot be written.
    """
    path = Path(path)
    root = Path(os.path.realpath(path.parent))
    partial, count = path.with_name(path.name + ".partial"), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            for example in examples:
                file.write(json.dumps(_record(example, root), ensure_ascii=False) + "\n")
                count += 1
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return count


def _record(example: Example, root: Path) -> dict[str, Any]:
    record = example.to_dict()
    if example.media:
        record["media"] = [_media_record(example, media, root) for media in example.media]
    if example.earlier:
        record["earlier"] = [_record(turn, root) for turn in example.earlier]
    return record


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); pass a file of JSON lines") from error


def example_of_row(row: Any, root: Path) -> Example:
    """The Example of one row, whose media lie in `root`; ValueError says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is expected, not {type(row).__name__}")
    row = {key: value for key, value in row.items() if value is not None}
    unknown = {key: value for key, value in row.items() if key not in FIELDS}
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise ValueError(f"meta must be an object, not {type(meta).__name__}")
    answer_type = row.get("answer_type")
    if answer_type not in get_args(AnswerType):
        raise ValueError(f"answer_type is {answer_type!r}; allowed: {', '.join(get_args(AnswerType))}")
    row_id = str(row["id"]) if isinstance(row.get("id"), int) else _text(row, "id")
    question = _text(row, "question")
    for name, text in (("id", row_id), ("question", question)):
        if not text.strip():
            raise ValueError(f"{name} is empty")
    options = _options(row.get("options", []))
    answer = _answer(row, answer_type, options)
    return Example(
        id=row_id,
        question=question,
        answer=answer,
        answer_type=answer_type,
        media=tuple(_media(item, root) for item in _list(row.get("media", []), "media")),
        options=options,
        question_type=_text(row, "question_type", "general"),
        response=_text(row, "response") if "response" in row else None,
        learn=_texts(row.get("learn", []), "learn"),
        hint=_text(row, "hint", ""),
        earlier=tuple(_turn(turn, root) for turn in _list(row.get("earlier", []), "earlier")),
        benchmark=_text(row, "benchmark", ""),
        split=_text(row, "split", ""),
        meta={**unknown, **meta},
    )


def _turn(row: Any, root: Path) -> Example:
    """One of `earlier`: a row with a response, and without turns before it."""
    turn = example_of_row(row, root)
    if turn.earlier or not (turn.response or "").strip():
        raise ValueError("each of earlier needs a response, and has no earlier of its own")
    return turn


def _text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {type(value).__name__}")
    return value


def _list(value: Any, name: str) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {type(value).__name__}")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    texts = tuple(_list(value, name))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of texts")
    return texts


def _options(value: Any) -> tuple[str, ...]:
    options = _texts(value, "options")
    if len(options) > len(string.ascii_uppercase):
        raise ValueError("options must be at most 26 texts, without their letters")
    return options


def _answer(row: Mapping[str, Any], answer_type: str, options: tuple[str, ...]) -> str:
    """The gold answer as a text; numbers, spans and boxes may stand as JSON values. May be absent beside a response."""
    value = row.get("answer", "" if "response" in row else None)
    if value is None:
        raise ValueError("answer is missing")
    if isinstance(value, bool | dict):
        raise ValueError(f"answer must be a text, a number or a list, not {type(value).__name__}")
    answer = value if isinstance(value, str) else json.dumps(value)
    if answer_type == "mcq" and answer:
        letters = string.ascii_uppercase[: len(options)]
        if len(options) < 2:
            raise ValueError("answer_type mcq needs at least two options")
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"answer {answer!r} must be the letter of an option, one of {letters}")
    return answer


def _media(item: Any, root: Path) -> Media:
    if not isinstance(item, dict) or item.get("type") not in ("image", "video"):
        raise ValueError('each of media must be an object with "type" image or video')
    name = _text(item, "path")
    path = os.path.realpath(root / name) if "\0" not in name else None
    if path is None or not Path(path).is_relative_to(root):
        raise ValueError(f"media path {name!r} leaves the folder {root}; move the file below it")
    start, end = _seconds(item, "start"), _seconds(item, "end")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"media {name!r} starts at {start} s, not before its end at {end} s")
    return Media(item["type"], path, start, end)


def _seconds(item: Mapping[str, Any], name: str) -> float | None:
    value = item.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} of media must be seconds, 0 or more, not {value!r}")
    return float(value)


def _media_record(example: Example, media: Media, root: Path) -> dict[str, Any]:
    path = Path(os.path.realpath(media.path))
    if not path.is_relative_to(root):
        raise DataError(f"{example.id}: {media.path} lies outside {root}; write the records above their media")
    record = {"type": media.type, "path": path.relative_to(root).as_posix(), "start": media.start, "end": media.end}
    return {key: value for key, value in record.items() if value is not None}
