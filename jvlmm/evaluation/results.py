"""Where the figures of evaluations lie: `results.json`, and a directory that names what was evaluated."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvlmm.errors import DataError
from jvlmm.json_text import json_text

RESULTS = "results.json"
_CONFIG = "config.json"


def write_results(folder: Path, evaluations: Mapping[str, Any]) -> Path:
    """Writes {"evaluations": {STAGE: figures}} to `results.json` in `folder`, whole or not at all; returns its path.

    Raises DataError where it cannot be written.
    """
    path = folder / RESULTS
    partial = path.with_name(f"{RESULTS}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json_text({"evaluations": evaluations}, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); free the disk or choose another folder"
        ) from error
    return path


def claim_directory(named: str | None, model: str, data: str, config: str) -> Path:
    """Returns the directory of an evaluation, in which nothing is overwritten; `config` is its options as JSON.

    `named` is the directory that the user asks for. Without one it is `runs/eval/MODEL_DATA`, and with -2, -3, … behind
    it where that holds other results. An evaluation of the same options that was interrupted has its directory again.
    Raises DataError where `named` holds results, or an evaluation of other options.
    """
    if named is not None:
        folder = Path(named)
        if (folder / RESULTS).is_file():
            raise DataError(
                f"--out {folder}: holds the results of an evaluation; choose another folder, or move it away"
            )
        if _holds_another(folder, config):
            raise DataError(f"--out {folder}: holds an evaluation of other options; choose another folder")
    else:
        first = Path("runs/eval") / f"{_name_of(model)}_{_name_of(data)}"
        folder, number = first, 1
        while (folder / RESULTS).is_file() or _holds_another(folder, config):
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).write_text(config, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from error
    return folder


def give_back(folder: Path) -> None:
    """Removes a claimed directory in which nothing was evaluated."""
    if {path.name for path in folder.iterdir()} == {_CONFIG}:
        (folder / _CONFIG).unlink()
        folder.rmdir()


def _holds_another(folder: Path, config: str) -> bool:
    path = folder / _CONFIG
    try:
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")) != json.loads(config)
    except (OSError, ValueError):
        return True


def _name_of(path: str) -> str:
    """A name for a model or data: of what a run exported the run's and the stage's, else the last part of the path."""
    parts = Path(os.path.abspath(path)).parts
    if len(parts) > 2 and parts[-2] == "models":  # runs/first/models/sft
        name = f"{parts[-3]}-{parts[-1]}"
    elif len(parts) > 1 and parts[-1] == "data":  # runs/first/data
        name = f"{parts[-2]}-data"
    else:
        name = Path(path).stem if path.endswith((".json", ".jsonl")) else parts[-1]
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "unnamed"
