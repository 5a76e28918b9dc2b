"""Examples that cannot be used: counted, listed with the reason, never in the way."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

from jvlmm.errors import DataError


@dataclass(frozen=True)
class Rejected:
    """Stands in the stream where an example could not be processed."""

    id: str
    reason: str


class Rejections:
    """Each rejected example once, in memory and in `path` (JSON lines of id and reason), across restarts."""

    def __init__(self, path: str | Path | None):
        """Continues the list in `path`; None keeps it in memory. Raises DataError when it is not such a list."""
        self._path = Path(path) if path is not None else None
        self._lock = threading.Lock()
        self._reasons: dict[str, str] = {}
        if self._path is not None and self._path.exists():
            self._reasons = _read(self._path)

    def add(self, rejected: Rejected) -> None:
        """Note an example, once however often it comes by. Raises DataError when the list cannot be written."""
        with self._lock:
            if rejected.id in self._reasons:
                return
            self._reasons[rejected.id] = rejected.reason
            if self._path is not None:
                self._append(self._path, {"id": rejected.id, "reason": rejected.reason})

    @staticmethod
    def _append(path: Path, row: dict[str, str]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(
                f"{path}: rejected examples cannot be listed ({error.strerror}); free space or choose a folder "
                "that can be written"
            ) from error

    @property
    def reasons(self) -> dict[str, str]:
        """id → reason."""
        return dict(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)


def _read(path: Path) -> dict[str, str]:
    """id → reason of an earlier list; a last line torn by a killed process is cut off."""
    try:
        lines = path.read_bytes().split(b"\n")
        torn = lines.pop()
        if torn.startswith(b'{"id"'):
            with path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in lines))
        elif torn:
            raise ValueError("a line of another kind")
        rows = [json.loads(line) for line in lines if line]
        return {row["id"]: row["reason"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a list of rejected examples; move the file away") from error
