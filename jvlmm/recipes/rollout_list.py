"""The rollouts of a stage, written down for people to read."""

import json
import os
from pathlib import Path

from jvlmm.training.experience import Group


class RolloutList:
    """A JSON line for every rollout, step by step. Steps that are done again after a restart replace their lines."""

    def __init__(self, path: Path):
        self._path = path
        self._begun = False

    def __call__(self, step: int, groups: tuple[Group, ...]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._begun:
            self._begun = True
            self._drop_from(step)
        with self._path.open("a", encoding="utf-8") as file:
            for group in groups:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in group.records(step))

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
