"""One line per answered question: the record, and the file it goes to."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jvlmm.errors import DataError
from jvlmm.files import read_json_lines
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

    def record(self) -> dict[str, Any]:
        """What a line tells; `error`, `scored_by` and `gold_as_answered` only where there are such."""
        record = asdict(self)
        for name in ("error", "scored_by", "gold_as_answered"):
            if record[name] is None:
                del record[name]
        return record

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Prediction":
        """The prediction whose record was read from a line. TypeError where it is none."""
        tuples = {name: tuple(record[name]) for name in ("options", "media")}
        tuples |= {name: tuple(map(tuple, record[name])) for name in ("frames", "times")}
        return cls(**{**record, **tuples})


@dataclass(frozen=True)
class Answered:
    """A row of an evaluation that was interrupted: its prediction, and what else its response told."""

    prediction: Prediction
    tokens: tuple[int, ...]
    control: dict[str, Any] | None


class PredictionWriter:
    """Context manager that appends predictions to PATH.partial as they come, and leaves PATH in row order.

    PATH changes only when all is written: an interrupted evaluation leaves the earlier file as it was, and PATH.partial
    with what it had. That begins with `evaluation`, what is asked of which model; where it began with the same,
    `answered` has its rows, those that failed left out. Raises DataError naming the file where it cannot be written.
    """

    def __init__(self, path: str | Path, evaluation: Mapping[str, Any] | None = None):
        """`evaluation` is JSON-ready; None begins anew."""
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._evaluation = json.loads(json_text(evaluation))
        self._lines: dict[int, str] = {}
        self.answered: dict[int, tuple[str, Answered]] = {}  # row: digest of its example, what was answered

    def __enter__(self) -> "PredictionWriter":
        with _naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._read_partial() if self._evaluation is not None else []
            self._file = self.partial.open("w", encoding="utf-8")
            for record in ({"evaluation": self._evaluation}, *kept):
                self._file.write(json_text(record) + "\n")
            self._file.flush()
        return self

    def write(self, row: int, digest: str, answered: Answered) -> None:
        """Append the prediction of example number `row`."""
        self.keep(row, answered.prediction)
        record = {
            "row": row,
            "example": digest,
            "tokens": answered.tokens,
            "control": answered.control,
            "prediction": answered.prediction.record(),
        }
        with _naming(self.path):
            self._file.write(json_text(record) + "\n")
            self._file.flush()

    def keep(self, row: int, prediction: Prediction) -> None:
        """Count in the prediction of example number `row`, which PATH.partial has already."""
        self._lines[row] = json_text(prediction.record()) + "\n"

    def __exit__(self, kind, error, trace) -> None:
        with _naming(self.path):
            self._file.close()
            if kind is None:
                # Beside PATH.partial, which is still whole where this fails.
                ordered = self.path.with_name(self.path.name + ".ordered")
                with ordered.open("w", encoding="utf-8") as file:
                    file.writelines(self._lines[row] for row in sorted(self._lines))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(ordered, self.path)
                self.partial.unlink()

    def _read_partial(self) -> list[dict[str, Any]]:
        """The records of rows that were answered, which `answered` has from now on."""
        if not self.partial.is_file():
            return []
        head, *records = read_json_lines(self.partial) or [{}]
        if head.get("evaluation") != self._evaluation:
            return []
        kept = []
        for record in records:
            try:
                prediction = Prediction.of(record["prediction"])
                answered = Answered(prediction, tuple(record["tokens"]), record["control"])
            except (KeyError, TypeError):  # of a version that wrote other records
                continue
            if prediction.error is None:
                self.answered[record["row"]] = record["example"], answered
                kept.append(record)
        return kept


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
