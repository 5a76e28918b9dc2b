"""Examples that cannot be used: counted, listed with the reason, never in the way."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from jvlmm.data.example import AnswerType, Example
from jvlmm.errors import DataError, JvlmmError, VideoError
from jvlmm.json_text import json_text, printable

T = TypeVar("T")


@dataclass(frozen=True)
class Rejected:
    """Stands in the stream where an example could not be processed."""

    id: str
    reason: str
    origin: str = ""  # of the row, as PATH:LINE, where it is known: ids need not differ between files
    answer_type: AnswerType | Literal["unusable"] = field(default="unusable", compare=False)  # that the row names

    @property
    def row(self) -> str:
        """What tells this row from all others: its origin, or else its id."""
        return self.origin or self.id

    @property
    def message(self) -> str:
        """The reason, with the file where it begins with a line of it."""
        path = self.origin.rpartition(":")[0]
        return f"{path}: {self.reason}" if path and self.reason.startswith(("line ", "row ")) else self.reason


def attempted(example: Example, work: Callable[[Example], T]) -> T | Rejected:
    """Returns `work(example)`, or Rejected where the example cannot be used, whatever it raises.

    DataError and VideoError speak for themselves; another exception is one that nobody has foreseen, as of a template
    or a damaged file: it costs its row, not the run. Other errors of ours (a bad option, a decoder that does not start
    or is closed) are no fault of the row and are raised.
    """
    try:
        return work(example)
    except (DataError, VideoError) as error:
        return Rejected(example.id, printable(str(error), limit=1000), example.origin)
    except JvlmmError:
        raise
    except Exception as error:
        return Rejected(example.id, f"{example.id}: {unforeseen(error)}", example.origin)


def unforeseen(error: Exception) -> str:
    """Returns one line on an exception that was not written for users."""
    return printable(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}", limit=500)


class Rejections:
    """Each rejected row once, in memory and in `path` (JSON lines of id, origin and reason), across restarts."""

    def __init__(self, path: str | Path | None, repeated: bool = False):
        """Continues the list in `path`; None keeps it in memory. Raises DataError when it is not such a list.

        `repeated` (in memory only) keeps a row each time it is added, as an evaluation counts the rows of its sources.
        """
        self._path = Path(path) if path is not None else None
        self._repeated = repeated
        self._lock = threading.Lock()
        self._rows: dict[str, Rejected] = {}
        if self._path is not None and self._path.exists():
            self._rows = _read(self._path)

    def add(self, rejected: Rejected) -> None:
        """Note an example, once however often it comes by. Raises DataError when the list cannot be written."""
        with self._lock:
            name = f"{len(self._rows)}" if self._repeated else rejected.row
            if name in self._rows:
                return
            self._rows[name] = rejected
            if self._path is not None:
                self._append(self._path, rejected)

    @staticmethod
    def _append(path: Path, rejected: Rejected) -> None:
        record = {"id": rejected.id, "origin": rejected.origin, "reason": rejected.reason}
        if not rejected.origin:
            del record["origin"]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json_text(record) + "\n")
        except OSError as error:
            raise DataError(
                f"{path}: rejected examples cannot be listed ({error.strerror}); free space or choose a folder "
                "that can be written"
            ) from error

    @property
    def rows(self) -> tuple[Rejected, ...]:
        """All of them, in the order in which they came."""
        with self._lock:
            return tuple(self._rows.values())

    @property
    def reasons(self) -> dict[str, str]:
        """id → reason; of rows with equal ids that of the last. `rows` has all."""
        return {rejected.id: rejected.reason for rejected in self.rows}

    def __len__(self) -> int:
        return len(self._rows)


def _read(path: Path) -> dict[str, Rejected]:
    """The rows of an earlier list by what tells them apart; a last line torn by a killed process is cut off."""
    try:
        lines = path.read_bytes().split(b"\n")
        torn = lines.pop()
        if torn and torn.startswith(b'{"id"'[: len(torn)]):
            with path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in lines))
        elif torn:
            raise ValueError("a line of another kind")
        records = [json.loads(line) for line in lines if line]
        rows = [Rejected(record["id"], record["reason"], record.get("origin", "")) for record in records]
        return {rejected.row: rejected for rejected in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a list of rejected examples; move the file away") from error
