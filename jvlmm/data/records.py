"""The neutral record as JSON lines: read with every row checked, written with paths relative to the file."""

import json
import math
import os
import re
import stat
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, get_args

from jvlmm.data.coordinates import COORDINATES
from jvlmm.data.example import AnswerType, Example, Media, option_letters, plain_options
from jvlmm.data.rejections import Rejected, Rejections, unforeseen
from jvlmm.errors import DataError
from jvlmm.json_text import json_text, printable

FIELDS = tuple(field.name for field in fields(Example) if field.name != "origin")
LINE_BYTES = 2**26  # of a row; what is longer is no row

_BOM = b"\xef\xbb\xbf"
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Records:
    """What a file holds: all of its rows in order, usable or not."""

    rows: tuple[Example | Rejected, ...]  # the reason of a Rejected starts with the number of its line

    @property
    def examples(self) -> tuple[Example, ...]:
        """The usable rows."""
        return tuple(row for row in self.rows if isinstance(row, Example))

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """The rows that cannot be used."""
        return tuple(row for row in self.rows if isinstance(row, Rejected))


@dataclass(frozen=True)
class MediaFolders:
    """Where the media that rows name are looked for. Nothing outside `root` is opened, links resolved."""

    root: Path  # resolved
    bases: tuple[Path, ...]  # folders that paths are relative to; the first one that has the file is taken

    @classmethod
    def of_file(cls, path: Path, root: str | Path | None) -> "MediaFolders":
        """The folders of the media of the rows in `path`.

        Without `root` media lie in the file's folder. With it they lie in `root`, named from there or from the file's
        folder. In the Hub's cache the root is the data set's own folder, where its files are links to `blobs/`.
        """
        folder = Path(os.path.realpath(path.parent))
        if root is not None:
            if not Path(root).is_dir():
                raise DataError(f"root {root}: no such folder; name the one that holds the media of {path}")
            root = Path(os.path.realpath(root))
            return cls(root, (root, folder))
        hub = next((p.parent for p in folder.parents if p.name == "snapshots" and (p.parent / "blobs").is_dir()), None)
        return cls(hub or folder, (folder,))

    def find(self, name: str) -> str:
        """The absolute path of the file that a row names, which need not exist; ValueError where it leaves the root."""
        inside = []
        for base in self.bases if "\0" not in name else ():
            path = os.path.realpath(base / name)  # `..` and links as the system resolves them
            if Path(path).is_relative_to(self.root):
                inside.append(path)
        if not inside:
            raise ValueError(
                f"media path {name!r} leaves the folder {self.root}; move the file below it, or name the folder that "
                "holds both: --root of a command, root= of a source"
            )
        return next((path for path in inside if os.path.exists(path)), inside[0])


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
    """Read a file of records: one JSON object a line, or one JSON array of objects. Media paths become absolute.

    Media are relative to `root`, or to the file's folder, and must lie in `root` (by default the file's folder), links
    resolved; see `MediaFolders`. Whether they exist shows when they are opened. Fields the record does not know go to
    `meta`. A row that breaks a rule is returned among the rejected with its line number and the reason; ids must be
    unique.

    Raises DataError when the file cannot be opened, is no file (a device, a pipe), or is an array that ends too early.
    """
    path = Path(path)
    folders = MediaFolders.of_file(path, root)
    return records_of(path, _rows(path), lambda row: example_of_row(row, folders))


def records_of(path: Path, rows: Iterable[tuple[str, Any]], make: Callable[[Any], Example]) -> Records:
    """Returns the Records of a file: what `make` makes of every row, given as (its place, such as "line 3"; the row).

    A row of bytes is JSON. Whatever reading or making it raises, the row is among the rejected, by its id where it has
    one; so is a row whose id an earlier one has.
    """
    found: list[Example | Rejected] = []
    ids: set[str] = set()
    for place, row in rows:
        kind, number = place.split()
        origin = f"{path}:{number}"
        try:
            row = json.loads(row.decode("utf-8")) if isinstance(row, bytes) else row
            example = replace(make(row), origin=origin)
            if example.id in ids:
                raise ValueError(f"id {example.id!r} stands on an earlier {kind} too; ids must be unique")
            ids.add(example.id)
            found.append(example)
        except Exception as error:  # JSON and UTF-8 errors are ValueErrors; a row of any other fault is one as well
            reason = str(error) if isinstance(error, ValueError | RecursionError) else unforeseen(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"no JSON ({error.msg} at character {error.pos + 1})"
            row_id = row.get("id") if isinstance(row, dict) else None
            name = str(row_id) if isinstance(row_id, str | int) else f"{path.name}:{number}"
            reason = printable(f"{place}: {reason}", limit=500)
            answer_type = row.get("answer_type") if isinstance(row, dict) else None
            known = answer_type if answer_type in get_args(AnswerType) else "unusable"
            found.append(Rejected(printable(name), reason, origin, known))
    return Records(tuple(found))


def write_examples(path: str | Path, examples: Iterable[Example], root: str | Path | None = None) -> int:
    """Write records that `read_examples` reads back equal; returns their number.

    Media paths are written relative to `root`, by default the folder of `path`; `read_examples` is given the same one.
    The file appears complete or not at all. Raises DataError when a media file lies outside it, or the file cannot be
    written.
    """
    path = Path(path)
    root = Path(os.path.realpath(path.parent if root is None else root))
    partial, count = path.with_name(path.name + ".partial"), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            for example in examples:
                file.write(json_text(_record(example, root)) + "\n")
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


def open_data_file(path: Path) -> BinaryIO:
    """Opens a file of rows, without a byte order mark. Raises DataError where it is no regular file or UTF-16."""
    wanted = "pass a file of JSON lines, or a JSON array of rows"
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise DataError(f"{path}: cannot be read (a device or a pipe is no data file); {wanted}")
        file = path.open("rb")
        first = file.read(3)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {wanted}") from error
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        file.close()
        raise DataError(f"{path}: cannot be read (it is UTF-16 text); save it as UTF-8")
    file.seek(3 if first == _BOM else 0)
    return file


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, bytes of a line that is not blank) of every row; (place, row) where the file is a JSON array."""
    with open_data_file(path) as file:
        begin = file.tell()
        first = _first_line(file)
        if first.startswith(b"["):
            file.seek(begin)
            array = _array(path, file.read(), first)
            if array is not None:
                yield from ((f"row {number}", row) for number, row in enumerate(array, 1))
                return
        file.seek(begin)
        number = 0
        while line := file.readline(LINE_BYTES):
            number += 1
            whole = line
            while not line.endswith(b"\n") and (line := file.readline(LINE_BYTES)):
                whole = b"a row of more than %d bytes" % LINE_BYTES  # which is no JSON, as the reason will say
            if whole.strip():
                yield f"line {number}", whole


def _first_line(file: BinaryIO) -> bytes:
    """The first line that is not blank."""
    while (line := file.readline(LINE_BYTES)) and not line.strip():
        pass
    return line.strip()


def _array(path: Path, text: bytes, first: bytes) -> list | None:
    """The rows of a file that is one JSON array; None where it is lines of JSON, of which the first is a list."""
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        with suppress(ValueError, RecursionError):
            json.loads(first)
            return None
        raise DataError(f"{path}: the JSON array cannot be read ({error}); write it again, whole") from error


def example_of_row(row: Any, folders: MediaFolders) -> Example:
    """The Example of one row, whose media lie in `folders`; ValueError says what is wrong with it."""
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
    is_number = isinstance(row.get("id"), int) and not isinstance(row["id"], bool)
    row_id = str(row["id"]) if is_number else _text(row, "id")
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
        media=tuple(_media(item, folders) for item in _list(row.get("media", []), "media")),
        options=options,
        question_type=_text(row, "question_type", "general"),
        response=_text(row, "response") if "response" in row else None,
        learn=_texts(row.get("learn", []), "learn"),
        hint=_text(row, "hint", ""),
        system=_text(row, "system", ""),
        earlier=tuple(_turn(turn, folders) for turn in _list(row.get("earlier", []), "earlier")),
        benchmark=_text(row, "benchmark", ""),
        split=_text(row, "split", ""),
        meta={**unknown, **meta},
        coordinates=_coordinates(row),
        box_medium=_box_medium(row),
    )


def _turn(row: Any, folders: MediaFolders) -> Example:
    """One of `earlier`: a row with a response, and without turns before it."""
    turn = example_of_row(row, folders)
    if turn.system:
        raise ValueError("one of earlier has a system text; give it to the row, as it begins the conversation")
    if turn.earlier or not (turn.response or "").strip():
        raise ValueError("each of earlier needs a response, and has no earlier of its own")
    return turn


def _coordinates(row: Mapping[str, Any]) -> str:
    """In which pixels the row's boxes stand; "" where it does not say."""
    value = row.get("coordinates", "")
    if value and value not in COORDINATES:
        raise ValueError(f"coordinates is {value!r}; allowed: {', '.join(COORDINATES)}")
    return value


def _box_medium(row: Mapping[str, Any]) -> int | None:
    """The number of the medium that the row's boxes are of."""
    value, count = row.get("box_medium"), len(row.get("media", []))
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count):
        raise ValueError(f"box_medium is {value!r}; give the number of one of the {count} media, from 0 on")
    return value


def _text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None:
        raise ValueError(f"{name} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, not {type(value).__name__}")
    return _whole(value, name)


def _whole(text: str, name: str) -> str:
    """The text; ValueError where it holds half of a character, which no tokenizer and no file takes."""
    if half := _HALF_SURROGATE.search(text):
        raise ValueError(f"{name} holds half of a character ({half[0]!r}, a lone surrogate); mend the text")
    return text


def _list(value: Any, name: str) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {type(value).__name__}")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    texts = tuple(_list(value, name))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of texts")
    return tuple(_whole(text, name) for text in texts)


def _options(value: Any) -> tuple[str, ...]:
    options = _texts(value, "options")
    if len(options) > len(string.ascii_uppercase):
        raise ValueError("options must be at most 26 texts, without their letters")
    letters = option_letters(options)
    if letters and letters != sorted(letters) and set(letters) == set(string.ascii_uppercase[: len(options)]):
        raise ValueError(
            f"the options bring letters in another order ({', '.join(letters)}); take the letters away, the options "
            "are A, B, C, … as they come"
        )
    return plain_options(options)


def _answer(row: Mapping[str, Any], answer_type: str, options: tuple[str, ...]) -> str:
    """The gold answer as a text; numbers, spans and boxes may stand as JSON values. May be absent beside a response."""
    value = row.get("answer", "" if "response" in row else None)
    if value is None:
        raise ValueError("answer is missing")
    if isinstance(value, bool | dict):
        raise ValueError(f"answer must be a text, a number or a list, not {type(value).__name__}")
    try:
        answer = _whole(value, "answer") if isinstance(value, str) else json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError(str(error) if isinstance(value, str) else "answer must be finite") from None
    if answer_type == "mcq" and answer:
        letters = string.ascii_uppercase[: len(options)]
        if len(options) < 2:
            raise ValueError("answer_type mcq needs at least two options")
        if len(answer) != 1 or answer not in letters:
            raise ValueError(f"answer {answer!r} must be the letter of an option, one of {letters}")
    return answer


def _media(item: Any, folders: MediaFolders) -> Media:
    if not isinstance(item, dict) or item.get("type") not in ("image", "video"):
        raise ValueError('each of media must be an object with "type" image or video')
    name = _text(item, "path")
    path = folders.find(name)
    start, end = _seconds(item, "start"), _seconds(item, "end")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"media {name!r} starts at {start} s, not before its end at {end} s")
    return Media(item["type"], path, start, end)


def _seconds(item: Mapping[str, Any], name: str) -> float | None:
    value = item.get(name)
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # an integer of more digits than a float has
        seconds = math.inf
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} of media must be seconds, 0 or more, not {printable(repr(value), limit=40)}")
    return seconds


def _media_record(example: Example, media: Media, root: Path) -> dict[str, Any]:
    path = Path(os.path.realpath(media.path))
    if not path.is_relative_to(root):
        raise DataError(
            f"{example.id}: {media.path} lies outside {root}; write the records above their media, "
            "or name the folder that holds them: --root of a command"
        )
    record = {"type": media.type, "path": path.relative_to(root).as_posix(), "start": media.start, "end": media.end}
    return {key: value for key, value in record.items() if value is not None}
