"""What a stage did step by step, its rollouts say, written down for people to read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jvlmm.files import keep_json_lines
from jvlmm.json_text import json_text


class RecordList:
    """A JSON line for every record, which has its step. Steps that are done again after a restart replace theirs."""

    def __init__(self, path: Path):
        self._path = path
        self._begun = False

    def __call__(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Add those of `step`, a number that does not fall while this list is in use."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._begun:
            self._begun = True
            keep_json_lines(self._path, lambda record: record["step"] < step)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json_text(record) + "\n" for record in records)
