"""The rewards of a batch of completions, whole and in parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jvlmm.data.example import Example
from jvlmm.errors import ConfigError


class Failure(NamedTuple):
    """How often a term could not be computed, and why it first could not."""

    count: int
    reason: str


@dataclass(frozen=True)
class RewardTable:
    """Rewards of N completions; every array is float64 [N]."""

    total: np.ndarray  # Σ weight · part over the terms that apply; NaN where one of them failed
    parts: dict[str, np.ndarray]  # by term, unweighted; NaN where it does not apply or failed
    accuracy: np.ndarray  # of the first term that judges the answer and did not fail; NaN where none does
    details: dict[str, np.ndarray]  # TERM.NAME: what users' functions report beside; NaN where they do not
    failures: dict[str, Failure]  # by term; only those that failed

    def require_some(self) -> None:
        """Raises ConfigError with the reason where there are completions, and not one of them has a reward."""
        if not self.total.size or not np.isnan(self.total).all():
            return
        reasons = "; ".join(f"term {name!r} {failure.reason}" for name, failure in self.failures.items())
        raise ConfigError(
            f"rewards: none of the {self.total.size} rollouts of a step could be scored: {reasons}; mend the reward, "
            "set its weight to 0, or leave the term out"
        )

    @staticmethod
    def joined(tables: "Sequence[RewardTable]") -> "RewardTable":
        """One table of the completions of all, in their order; the tables are of one rewarder."""
        names = dict.fromkeys(name for table in tables for name in table.details)
        missing = [np.full(len(table.total), np.nan) for table in tables]
        details = {
            name: np.concatenate([t.details.get(name, nan) for t, nan in zip(tables, missing, strict=True)])
            for name in names
        }
        failures: dict[str, Failure] = {}
        for table in tables:
            for name, failure in table.failures.items():
                before = failures.get(name, Failure(0, failure.reason))
                failures[name] = Failure(before.count + failure.count, before.reason)
        return RewardTable(
            total=np.concatenate([table.total for table in tables]),
            parts={name: np.concatenate([table.parts[name] for table in tables]) for name in tables[0].parts},
            accuracy=np.concatenate([table.accuracy for table in tables]),
            details=details,
            failures=failures,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; NaN as Python's own."""
        of = lambda arrays: {name: values.tolist() for name, values in arrays.items()}  # noqa: E731
        failures = {name: list(failure) for name, failure in self.failures.items()}
        alone = {"total": self.total.tolist(), "accuracy": self.accuracy.tolist()}
        return {**alone, "parts": of(self.parts), "details": of(self.details), "failures": failures}

    @staticmethod
    def from_json(table: dict[str, Any]) -> "RewardTable":
        """What `to_json` gave."""
        of = lambda lists: {name: np.array(values, np.float64) for name, values in lists.items()}  # noqa: E731
        failures = {name: Failure(*failure) for name, failure in table["failures"].items()}
        return RewardTable(
            **of({k: table[k] for k in ("total", "accuracy")}),
            failures=failures,
            **{k: of(table[k]) for k in ("parts", "details")},
        )

    def metrics(self, examples: Sequence[Example]) -> dict[str, float]:
        """Means for the log, over all completions and by question type: `reward`, `reward/TERM`, `reward/TERM/TYPE`.

        `answer_accuracy` is that of `accuracy`; `reward_failures` and `reward_failures/TERM` are counts.
        `examples` are those of the completions.
        """
        types = np.array([example.question_type for example in examples])
        arrays = {"reward": self.total, "answer_accuracy": self.accuracy}
        arrays |= {f"reward/{name}": values for name, values in (self.parts | self.details).items()}
        result = {}
        for name, values in arrays.items():
            known = ~np.isnan(values)
            if known.any():
                result[name] = float(values[known].mean())
            for question_type in np.unique(types[known]):
                result[f"{name}/{question_type}"] = float(values[known & (types == question_type)].mean())
        result["reward_failures"] = float(sum(failure.count for failure in self.failures.values()))
        return result | {f"reward_failures/{name}": float(f.count) for name, f in self.failures.items()}
