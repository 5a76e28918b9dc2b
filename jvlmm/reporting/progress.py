"""Progress of a stage: a bar with the time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Callable `(step, total, figures)` and context manager, as `training.loop.fit` takes it.

    Elsewhere than on a terminal it prints a line at the first step, at the last, and every `every_s`
    seconds between; `show` names the figures it displays, `unit` what is counted.
    """

    def __init__(
        self,
        label: str,
        show: tuple[str, ...] = ("loss", "tokens_per_s"),
        every_s: float = 10.0,
        file: TextIO | None = None,
        unit: str = "step",
    ):
        self._label, self._show, self._every_s, self._unit = label, show, every_s, unit
        self._console = Console(file=file or sys.stdout)
        self._bar = _make_bar(self._console) if self._console.is_terminal else None
        self._task = None
        self._start: tuple[float, int] | None = None  # time and number of the first step seen
        self._printed = float("-inf")

    def __call__(self, step: int, total: int, figures: Mapping[str, float]) -> None:
        """Show that `step` of `total` is done."""
        shown = "  ".join(f"{name} {_short(figures[name])}" for name in self._show if name in figures)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self._label, total=total, figures="")
            self._bar.update(self._task, completed=step, total=total, figures=shown)
            return
        now = time.monotonic()
        self._start = self._start or (now, step)
        if now - self._printed >= self._every_s or step == total:
            self._printed = now
            left = self._seconds_left(now, step, total)
            print(f"{self._label}: {self._unit} {step}/{total}  {shown}{left}", file=self._console.file, flush=True)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _seconds_left(self, now: float, step: int, total: int) -> str:
        start, first = self._start
        if step in (first, total):
            return ""
        return f"  {duration((now - start) / (step - first) * (total - step))} left"


def duration(seconds: float) -> str:
    """`1:02:03` for 3723 s, `2:03` for 123 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _make_bar(console: Console) -> RichProgress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return RichProgress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=console)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
