"""Metrics to JSONL, TensorBoard and, where asked, Weights & Biases."""

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from jvlmm.errors import ConfigError, JvlmmError
from jvlmm.files import keep_json_lines, write_atomically
from jvlmm.json_text import json_text


class MetricsWriter:
    """Writes records `{"stage", "step", "time", figure: value, …}` to `metrics.jsonl` and `tensorboard/STAGE`.

    One writer serves all stages of a run directory. Each line reaches the operating system at once, so a
    killed process loses none. `time` is in seconds since the epoch.

    In Weights & Biases every stage is a run of its own, whose steps are those of training; a directory always goes on
    with the runs it began.
    """

    def __init__(self, directory: str | Path, wandb_project: str | None = None):
        self.directory = Path(directory)
        self.path = self.directory / "metrics.jsonl"
        self._project, self._wandb = wandb_project, _import_wandb(wandb_project) if wandb_project else None
        self._running: Any = None  # of Weights & Biases, for `_stage`
        self._stage: str | None = None
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
        try:
            self._file.write(json_text(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise JvlmmError(
                f"{self.path}: metrics cannot be written ({error.strerror}); free space there and run again"
            ) from error
        figures = {k: v for k, v in record.items() if k not in ("stage", "step", "time")}
        board = self._board(record["stage"])
        for name, value in figures.items():
            board.add_scalar(name, value, record["step"])
        if self._wandb:
            named = {f"{record['stage']}/{name}": value for name, value in figures.items()}
            self._run(record["stage"]).log(named, step=record["step"])

    def truncate(self, stage: str, step: int) -> None:
        """Drop the lines of `stage` beyond `step`, and a last line that was cut off by a kill.

        The steps after a restored checkpoint are run again and logged again; the file keeps one line each.
        """
        self._file.close()
        keep_json_lines(self.path, lambda record: record["stage"] != stage or record["step"] <= step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._purge[stage] = step + 1

    def close(self) -> None:
        self._file.close()
        for board in self._boards.values():
            board.close()
        self._finish_run()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _board(self, stage: str) -> SummaryWriter:
        if stage not in self._boards:
            directory = str(self.directory / "tensorboard" / stage)
            self._boards[stage] = SummaryWriter(directory, purge_step=self._purge.get(stage))
        return self._boards[stage]

    def _run(self, stage: str) -> Any:
        """The run of a stage; that of the stage before is over. ConfigError where none can be begun."""
        if self._stage != stage:
            self._finish_run()
            described = self.directory / "config.json"
            name = self.directory.resolve().name
            try:
                self._running = self._wandb.init(
                    project=self._project,
                    id=f"{_identity(self.directory)}-{stage}",
                    name=f"{name}/{stage}",
                    group=name,
                    config=json.loads(described.read_text("utf-8")) if described.is_file() else {},
                    dir=str(self.directory),
                    resume="allow",
                )
            except Exception as error:  # of many kinds: no login, no network, …
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"wandb_project={self._project!r}: Weights & Biases cannot begin a run ({reason}); log in with "
                    "`wandb login`, set WANDB_MODE=offline, or set wandb_project=none"
                ) from error
            self._stage = stage
        return self._running

    def _finish_run(self) -> None:
        if self._stage is not None:
            self._running.finish()
            self._stage = None


def _identity(directory: Path) -> str:
    """What names the runs of a directory as long as it exists: drawn once, kept in its file wandb.id."""
    path = directory / "wandb.id"
    if not path.is_file() or not path.read_text().strip():
        write_atomically(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _import_wandb(project: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"wandb_project = {project!r} needs Weights & Biases; install it with: pip install 'jvlmm[wandb]'"
        ) from None
    return wandb
