"""What a decode-time controller did over an evaluation: figures, and traces of every question."""

import json
from pathlib import Path
from typing import Any, TextIO

from jvlmm.rollout.generator import Response


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
        print(json.dumps(record), file=self._file)


def off_message(without_video: int) -> str:
    """One line for a user whose questions it left alone."""
    return f"V-Reason was off in {without_video} question(s), whose prompts have no video tokens"
