"""The comparison stage: what several seeds of a method changed, against the model they began with."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jvlmm.errors import ConfigError
from jvlmm.json_text import json_text
from jvlmm.recipes.recipe import Run
from jvlmm.reporting.tables import text_table


@dataclass(frozen=True)
class Compare:
    """Accuracies of the evaluations `after`, one of each seed, against that of `before`; the result is `NAME.json`."""

    name: str = "compare"
    before: str = "before"
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.after) < 2:
            raise ConfigError(f"stage {self.name!r}: after={self.after} names no spread; name 2 evaluations or more")

    def run(self, run: Run) -> dict[str, Any]:
        before, *after = (run.results[name]["evaluation"]["accuracy"] for name in (self.before, *self.after))
        gains = gains_of(before, after)
        (run.workdir / f"{self.name}.json").write_text(json_text(gains, indent=1), encoding="utf-8")
        columns = ("before", "after", "gain", "std")
        rows = [[name, *(figures[column] for column in columns)] for name, figures in gains.items()]
        print(text_table([f"{len(after)} seeds", *columns], rows), flush=True)
        return {"path": f"{self.name}.json", "gains": gains}


def gains_of(before: dict[str, float], after: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """For each question type {before, after, gain, std, gains}; std is that of the gains, with ddof 1."""
    found = {}
    for name, base in before.items():
        gains = np.array([accuracy[name] for accuracy in after]) - base
        figures = {"before": base, "after": base + gains.mean(), "gain": gains.mean(), "std": gains.std(ddof=1)}
        found[name] = {
            **{key: round(float(value), 4) for key, value in figures.items()},
            "gains": gains.round(4).tolist(),
        }
    return found
