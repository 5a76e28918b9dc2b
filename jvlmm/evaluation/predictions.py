"""One line per answered question: the record, and the file it goes to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jvlmm.errors import DataError
from jvlmm.json_text import json_text


@dataclass(frozen=True)
class Prediction:
    """What a model was asked and said, and what it is worth; no other file is needed to read it.

    A row with `error` was never answered. Boxes of `gold` and of `raw` may stand in different `coordinates`; where they
    do, `gold_as_answered` is the gold answer in those of the model, and `media` tell both sizes.
    """

    id: str
    question_type: str
    answer_type: str
    raw: str  # the text as generated
    parsed: Any  # as in `rewards.scoring.Score`
    parse_method: str | None
    correct: bool
    score: float  # in [0, 1]; tIoU of spans, IoU of boxes
    format_ok: bool
    finished: bool  # False where the length limit cut the text
    frames: tuple[tuple[int, ...], ...]  # indices of the frames used, per medium
    visual_tokens: int
    text_tokens: int  # of the prompt, media apart
    output_tokens: int
    latency_s: float
    question: str = ""
    options: tuple[str, ...] = ()
    gold: str = ""  # the answer as the row has it
    gold_as_answered: str | None = None  # in the coordinates of `raw`, where it is another text than `gold`
    coordinates: dict[str, str] = field(default_factory=dict)  # of the boxes of `gold` and of `raw`
    times: tuple[tuple[float, ...], ...] = ()  # seconds, of the frames used
    media: tuple[dict[str, Any], ...] = ()  # `Shown` of each: file, sizes in it and as shown, what was left out to fit
    scored_by: str | None = None  # rouge, a judge or a user's function, where it is not equality that decides
    error: str | None = None

    def to_json(self) -> str:
        """One line of JSON; `error`, `scored_by` and `gold_as_answered` only where there are such."""
        record = asdict(self)
        for name in ("error", "scored_by", "gold_as_answered"):
            if record[name] is None:
                del record[name]
        return json_text(record)


class PredictionWriter:
    """Context manager that appends predictions to PATH.partial as they come, and leaves PATH in row order.

    PATH changes only when all is written: an interrupted evaluation leaves the earlier file as it was.
    Raises DataError naming the file where it cannot be written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._lines: dict[int, str] = {}

    def __enter__(self) -> "PredictionWriter":
        with _naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.partial.open("w", encoding="utf-8")
        return self

    def write(self, row: int, prediction: Prediction) -> None:
        """Append the prediction of example number `row`."""
        self._lines[row] = prediction.to_json() + "\n"
        with _naming(self.path):
            self._file.write(self._lines[row])
            self._file.flush()

    def __exit__(self, kind, error, trace) -> None:
        with _naming(self.path):
            self._file.close()
            if kind is None:
                with self.partial.open("w", encoding="utf-8") as file:
                    file.writelines(self._lines[row] for row in sorted(self._lines))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(self.partial, self.path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an OSError into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: predictions cannot be written ({error.strerror or error}); free the disk or choose a folder "
            "you may write to"
        ) from error
