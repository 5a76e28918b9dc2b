"""Two evaluations of the same questions, compared question by question."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import special

from jvlmm.errors import DataError
from jvlmm.evaluation.metrics import mean_half_width, wilson_interval

Prediction = Mapping[str, Any]  # a line of a predictions file, see `predictions.Prediction`


@dataclass(frozen=True)
class Pair:
    """What two models said to one question."""

    id: str
    first: Prediction
    second: Prediction

    @property
    def kinds(self) -> tuple[str, ...]:
        """The groups it belongs to: overall, its question type, its answer type."""
        return "overall", f"question type {self.first['question_type']}", f"answer type {self.first['answer_type']}"


def read_predictions(path: str | Path) -> list[Prediction]:
    """Returns the predictions at `path`: a JSONL file, or the directory of an evaluation that has one such file.

    The results.json of such a directory stands for it. Raises DataError where there is no such file, several of
    them, or lines that are no predictions.
    """
    path = Path(path)
    if path.name == "results.json":
        path = path.parent
    if path.is_dir():
        folder = path / "predictions"
        found = sorted((folder if folder.is_dir() else path).glob("*.jsonl"))
        if not found:
            raise DataError(f"{path}: holds no predictions; `jvlmm eval` and evaluation stages write them")
        if len(found) > 1:
            names = ", ".join(str(file) for file in found)
            raise DataError(f"{path}: one file of predictions is expected, there is {names}; name the file itself")
        (path,) = found
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no lines of JSON"
        raise DataError(f"{path}: no predictions ({reason}); pass a JSONL file that `jvlmm eval` wrote") from error
    needed = {"id", "correct", "score", "question_type", "answer_type"}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not needed <= row.keys():
            raise DataError(f"{path}, line {number}: no prediction; pass a JSONL file that `jvlmm eval` wrote")
    return rows


def paired(first: Sequence[Prediction], second: Sequence[Prediction]) -> tuple[list[Pair], list[str], list[str]]:
    """Returns the questions both have, in the order of `first`, and the ids that only the first or the second has.

    A repeated id is paired in the order in which it stands. Raises DataError where one id names two questions, or two
    gold answers.
    """
    pairs, waiting = [], {}
    for key, row in _numbered(second):
        waiting[key] = row
    alone = []
    for key, row in _numbered(first):
        other = waiting.pop(key, None)
        if other is None:
            alone.append(row["id"])
            continue
        for field in ("question", "gold"):
            if row.get(field) != other.get(field):
                raise DataError(
                    f"{row['id']}: its {field} is {row.get(field)!r} in the first and {other.get(field)!r} in the "
                    "second; compare answers to the same questions"
                )
        pairs.append(Pair(row["id"], row, other))
    return pairs, alone, [row["id"] for row in waiting.values()]


def _numbered(rows: Sequence[Prediction]) -> list[tuple[tuple[str, int], Prediction]]:
    """Every row with its id and how often that id stood before."""
    seen: Counter[str] = Counter()
    numbered = []
    for row in rows:
        numbered.append(((row["id"], seen[row["id"]]), row))
        seen[row["id"]] += 1
    return numbered


def compare(first: Sequence[Prediction], second: Sequence[Prediction]) -> dict[str, Any]:
    """Returns what the second evaluation gains over the first on the questions both have; JSON-ready.

    "groups": {"overall" | "question type …" | "answer type …": figures of `difference`}; "flips": questions answered
    rightly by one alone, with both answers; "only_first", "only_second": ids left out, as the other lacks them. A
    question that failed counts as wrong, as in the evaluations. Raises DataError where no question is in both.
    """
    pairs, only_first, only_second = paired(first, second)
    if not pairs:
        raise DataError("the two evaluations have no question in common; compare answers to the same questions")
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        for kind in pair.kinds:
            groups.setdefault(kind, []).append(pair)
    return {
        "groups": {
            name: difference(groups[name]) for name in sorted(groups, key=lambda name: (name != "overall", name))
        },
        "flips": [_flip(pair) for pair in pairs if bool(pair.first["correct"]) != bool(pair.second["correct"])],
        "only_first": only_first,
        "only_second": only_second,
    }


def difference(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Returns the figures of one group of questions.

    "n"; "first" and "second": accuracies; "difference": second minus first, with "interval", its 95 % interval by the
    score method for paired proportions; "gained" and "lost": questions that one alone answers rightly; "p": of the
    exact McNemar test, two-sided, 1 where nothing changed; "score_difference" of scores in [0, 1], such as IoUs, with
    the half width of its 95 % interval, None of fewer than 2 questions.
    """
    n = len(pairs)
    before = np.array([bool(pair.first["correct"]) for pair in pairs])
    after = np.array([bool(pair.second["correct"]) for pair in pairs])
    both, gained, lost = int((before & after).sum()), int((~before & after).sum()), int((before & ~after).sum())
    scores = np.array([pair.second["score"] - pair.first["score"] for pair in pairs], float)
    return {
        "n": n,
        "first": float(before.mean()),
        "second": float(after.mean()),
        "difference": (gained - lost) / n,
        "interval": paired_interval(both, gained, lost, n - both - gained - lost),
        "gained": gained,
        "lost": lost,
        "p": min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5))) if gained + lost else 1.0,
        "score_difference": fmean(scores),
        "score_half_width": float(mean_half_width(scores)) if n > 1 else None,
    }


def paired_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of two proportions of the same questions, gained minus lost.

    Wilson's intervals of each proportion are put together with the correlation of the answers, corrected for
    continuity: method 10 of Newcombe (Statistics in Medicine 17, 1998, p. 2635).
    """
    n = both + gained + lost + neither
    first, second = both + lost, both + gained
    (low1, high1), (low2, high2) = wilson_interval(first, n), wilson_interval(second, n)
    rate1, rate2 = first / n, second / n
    margins = first * second * (n - first) * (n - second)
    numerator = both * neither - gained * lost
    if numerator > 0:
        numerator = max(numerator - n / 2, 0)
    phi = numerator / math.sqrt(margins) if margins else 0.0
    down = math.sqrt((rate2 - low2) ** 2 - 2 * phi * (rate2 - low2) * (high1 - rate1) + (high1 - rate1) ** 2)
    up = math.sqrt((high2 - rate2) ** 2 - 2 * phi * (high2 - rate2) * (rate1 - low1) + (rate1 - low1) ** 2)
    return max(-1.0, rate2 - rate1 - down), min(1.0, rate2 - rate1 + up)


def _flip(pair: Pair) -> dict[str, Any]:
    """One question that one of the two alone answers rightly."""
    return {
        "id": pair.id,
        "question_type": pair.first["question_type"],
        "change": "gained" if pair.second["correct"] else "lost",
        "gold": pair.first.get("gold"),
        "first": pair.first.get("parsed"),
        "second": pair.second.get("parsed"),
        "errors": [row["error"] for row in (pair.first, pair.second) if row.get("error")],
    }
