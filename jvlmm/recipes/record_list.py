"""What a stage did step by step, its rollouts say, written down for people to read."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
            self._drop_from(step)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json_text(record) + "\n" for record in records)

    def _drop_from(self, step: int) -> None:
        if self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").split("\n")[
                :-1
            ]  # of a last line torn by a kill nothing stays
            rewritten = self._path.with_suffix(".jsonl.tmp")
            rewritten.write_text(
                "".join(f"{line}\n" for line in lines if json.loads(line)["step"] < step), encoding="utf-8"
            )
            os.replace(rewritten, self._path)
