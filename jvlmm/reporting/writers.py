"""Metrics to JSONL, TensorBoard and, where asked, Weights & Biases."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from jvlmm.errors import ConfigError
from jvlmm.json_text import json_text


class MetricsWriter:
    """Writes records `{"stage", "step", "time", figure: value, …}` to `metrics.jsonl` and `tensorboard/STAGE`.

    One writer serves all stages of a run directory. Each line reaches the operating system at once, so a
    killed process loses none. `time` is in seconds since the epoch.
    """

    def __init__(self, directory: str | Path, wandb_project: str | None = None):
        self.directory = Path(directory)
        self.path = self.directory / "metrics.jsonl"
        self._wandb = _start_wandb(wandb_project, self.directory) if wandb_project else None
        self._boards: dict[str, SummaryWriter] = {}
        self._purge: dict[str, int] = {}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror}; choose a writable run directory") from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; it must hold `stage` and `step`. Figures that are not finite become null."""
        record = {"stage": record["stage"], "step": record["step"], "time": round(time.time(), 3), **record}
        self._file.write(json_text(record) + "\n")
        self._file.flush()
        figures = {k: v for k, v in record.items() if k not in ("stage", "step", "time")}
        board = self._board(record["stage"])
        for name, value in figures.items():
            board.add_scalar(name, value, record["step"])
        if self._wandb:
            self._wandb.log({f"{record['stage']}/{name}": value for name, value in figures.items()})

    def truncate(self, stage: str, step: int) -> None:
        """Drop the lines of `stage` beyond `step`, and a last line that was cut off by a kill.

        The steps after a restored checkpoint are run again and logged again; the file keeps one line each.
        """
        self._file.close()
        lines = [line for line in self.path.read_text("utf-8").splitlines() if _kept(line, stage, step)]
        rewritten = self.path.with_suffix(".jsonl.tmp")
        rewritten.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        os.replace(rewritten, self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._purge[stage] = step + 1

    def close(self) -> None:
        self._file.close()
        for board in self._boards.values():
            board.close()
        if self._wandb:
            self._wandb.finish()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _board(self, stage: str) -> SummaryWriter:
        if stage not in self._boards:
            directory = str(self.directory / "tensorboard" / stage)
            self._boards[stage] = SummaryWriter(directory, purge_step=self._purge.get(stage))
        return self._boards[stage]


def _kept(line: str, stage: str, step: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return False
    return record["stage"] != stage or record["step"] <= step


def _start_wandb(project: str, directory: Path) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"wandb_project = {project!r} needs Weights & Biases; install it with: pip install 'jvlmm[wandb]'"
        ) from None
    return wandb.init(project=project, dir=str(directory), resume="allow")
