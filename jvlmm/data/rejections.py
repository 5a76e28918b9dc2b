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
            try:
                rows = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines() if line]
                self._reasons = {row["id"]: row["reason"] for row in rows}
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self._path}: not a list of rejected examples; move the file away") from error

    def add(self, rejected: Rejected) -> None:
        """Note an example, once however often it comes by."""
        with self._lock:
            if rejected.id in self._reasons:
                return
            self._reasons[rejected.id] = rejected.reason
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"id": rejected.id, "reason": rejected.reason}, ensure_ascii=False) + "\n")

    @property
    def reasons(self) -> dict[str, str]:
        """id → reason."""
        return dict(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)
