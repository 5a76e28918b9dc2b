"""What a decode-time controller did over some questions: figures, traces of each, and curves of these."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from jvlmm.data.example import Example
from jvlmm.errors import ConfigError, DataError
from jvlmm.json_text import json_text
from jvlmm.reporting.line_chart import Line, line_chart
from jvlmm.rollout.generator import Response
from jvlmm.test_time.entropy_curves import Curve


class SteeringLog:
    """Context manager to be told every response; a line of PATH for each that has a trace.

    PATH is written only where there are traces.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: TextIO | None = None
        self._plain = self._skipped = self._controlled = 0
        self._freed = 0.0

    def __enter__(self) -> "SteeringLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()

    def __call__(self, response: Response) -> None:
        if response.error is not None:
            return
        report = response.control or {}
        if not report.get("video_rows"):
            self._plain += 1
            return
        self._controlled += 1
        self._skipped += report["skipped_updates"]
        self._freed += report.get("freed_mib", 0.0)
        if "entropy" in report:
            self._write({"id": response.id, **report})

    def figures(self) -> dict[str, Any]:
        """{"questions", "without_video": where it was off, "skipped_updates", "freed_mib": of a question's cache}."""
        freed = self._freed / self._controlled if self._controlled else 0.0
        told = {"questions": self._controlled, "without_video": self._plain, "skipped_updates": self._skipped}
        return {**told, "freed_mib": round(freed, 4)}

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        print(json_text(record), file=self._file)


def off_message(without_video: int) -> str:
    """One line for a user whose questions it left alone."""
    return f"V-Reason was off in {without_video} question(s), whose prompts have no video tokens"


def with_video(examples: Iterable[Example], limit: int) -> list[Example]:
    """The first `limit` questions that have a video, which alone V-Reason steers. ConfigError where none has."""
    found = list(islice((row for row in examples if _has_video(row)), limit))
    if not found:
        raise ConfigError("no question has a video, and without one V-Reason is off; give questions about videos")
    return found


def _has_video(row: Example) -> bool:
    """Whether any turn of a conversation shows a video."""
    return any(media.type == "video" for turn in (*row.earlier, row) for media in turn.media)


def read_entropies(path: str | Path) -> list[list[float]]:
    """The entropies of every answer of a file of traces. DataError where it cannot be read or holds something else."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); pass a file of traces/") from error
    try:
        found = [[float(value) for value in json.loads(line)["entropy"]] for line in lines if line.strip()]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path}: is no file of traces; pass what vreason.trace=true leaves in traces/") from None
    if not all(found) or not found:
        raise DataError(f"{path}: has no traced answers; pass what vreason.trace=true leaves in traces/")
    return found


def entropy_chart(curves: Mapping[str, Curve]) -> str:
    """An SVG of mean entropies with their 95 % bands, by name."""
    lines = {name: Line(curve.mean.tolist(), curve.half_width.tolist()) for name, curve in curves.items()}
    return line_chart(lines, "Entropy while answering, mean and 95 % band", "token of the answer", "nats")
