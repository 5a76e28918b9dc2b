"""Files that survive a kill: written whole or not at all, and lists of JSON lines whose last one may be torn."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write text so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a list of JSON lines, [] where there is no file.

    A line that was torn, in the middle of a character too, is left out.
    """
    return [record for _, record in _records(path)]


def keep_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True) -> None:
    """Drop the lines that are torn, and those that `keep` is false of; nothing where there is no file."""
    if path.is_file():
        write_atomically(path, "".join(f"{line}\n" for line, record in _records(path) if keep(record)))


def _records(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """(line, object) of every line that is one, with its end."""
    if not path.is_file():
        return
    *lines, _torn = path.read_bytes().split(b"\n")
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # UnicodeDecodeError, too
            continue
        if isinstance(record, dict):
            yield line.decode("utf-8"), record
