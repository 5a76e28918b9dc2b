"""The comparison of two methods while they learn: how many steps one needs for what the other ends with."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from jvlmm.errors import ConfigError
from jvlmm.evaluation.metrics import mean_half_width
from jvlmm.json_text import json_text
from jvlmm.recipes.recipe import Run
from jvlmm.reporting.tables import text_table

_RESAMPLES = 10_000
_SUMMARY = ("ratio", "ratio_interval", "first_reaches_its_own", "lead", "lead_half_width")


@dataclass(frozen=True)
class CompareCurves:
    """Accuracies on held-out questions along the training of `first` and `second`, stages with the same seeds in order.

    The result, `NAME.json`, has at every evaluation the mean of each method and of the second's lead by pairs of seeds,
    with their 95 % intervals (Student's t over the seeds), and the lead over all evaluations; and the ratio: the steps
    at which the second's mean reaches the first's last one, for good or not, over all steps. Between evaluations the
    mean goes straight. Its 95 % interval is that of resampled seeds, the same ones of both methods; infinity, written
    as null, where the mean is not reached. Where the first's own curve is flat it reaches its last mean early itself
    (`first_reaches_its_own`), and the lead tells more than the ratio.
    """

    name: str = "curves"
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    figure: str = "eval/overall"

    def __post_init__(self) -> None:
        if len(self.first) != len(self.second) or len(self.first) < 2:
            raise ConfigError(
                f"stage {self.name!r}: first={self.first} and second={self.second}; name as many stages of both, one "
                "of each seed, 2 or more"
            )

    def run(self, run: Run) -> dict[str, Any]:
        records = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
        steps, first = curves_of(records, self.first, self.figure)
        others, second = curves_of(records, self.second, self.figure)
        if steps != others:
            raise ConfigError(f"stage {self.name!r}: the methods were evaluated at steps {steps} and {others}")
        found = compared(np.array(steps), first, second)
        (run.workdir / f"{self.name}.json").write_text(json_text(found, indent=1), encoding="utf-8")
        rows = [[str(step), *figures] for step, *figures in map(dict.values, found["curve"])]
        names = (name for method in (self.first[0], self.second[0], "lead") for name in (method, "± 95 %"))
        print(text_table([f"step, {len(first)} seeds", *names], rows))
        print(f"lead over all evaluations: {found['lead']} ± {found['lead_half_width']}")
        print(
            f"steps to the first's last mean, over its steps: {found['ratio']} {found['ratio_interval']}; "
            f"the first itself: {found['first_reaches_its_own']}",
            flush=True,
        )
        return {"path": f"{self.name}.json", **{name: found[name] for name in _SUMMARY}}


def curves_of(records: list[dict[str, Any]], stages: tuple[str, ...], figure: str) -> tuple[list[int], np.ndarray]:
    """(steps at which all stages have the figure, float64 [stages, steps])."""
    by_stage = [{r["step"]: r[figure] for r in records if r["stage"] == stage and figure in r} for stage in stages]
    steps = sorted(set.intersection(*map(set, by_stage)))
    if not steps:
        raise ConfigError(f"no step of the stages {stages} has {figure}; give them evaluation sources")
    return steps, np.array([[of_stage[step] for step in steps] for of_stage in by_stage])


def compared(steps: np.ndarray, first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """What `CompareCurves` reports, of float [seeds, steps] of each method."""
    seeds, chance = len(first), np.random.default_rng(seed)
    drawn = chance.integers(0, seeds, (_RESAMPLES, seeds))
    ratios = [reached(steps, second[of].mean(0), first[of].mean(0)[-1]) / steps[-1] for of in drawn]
    low, high = np.quantile(ratios, (0.025, 0.975), method="nearest")
    curves = {"first": first, "second": second, "lead": second - first}
    columns = {}
    for name, curve in curves.items():
        columns |= {name: curve.mean(0), f"{name}_half_width": mean_half_width(curve)}
    lead = curves["lead"].mean(axis=1)
    ratio = reached(steps, second.mean(0), first.mean(0)[-1]) / steps[-1]
    return {
        "ratio": _finite(ratio),
        "ratio_interval": [_finite(low), _finite(high)],
        "lead": round(float(lead.mean()), 4),
        "lead_half_width": round(float(mean_half_width(lead)), 4),
        "first_reaches_its_own": _finite(reached(steps, first.mean(0), first.mean(0)[-1]) / steps[-1]),
        "curve": [
            {"step": int(step), **{name: round(float(column[k]), 4) for name, column in columns.items()}}
            for k, step in enumerate(steps)
        ],
        "first": first.round(4).tolist(),
        "second": second.round(4).tolist(),
    }


def reached(steps: np.ndarray, curve: np.ndarray, level: float) -> float:
    """The first step at which the curve, straight between its points, is at the level; infinity where it never is."""
    above = np.flatnonzero(curve >= level)
    if not len(above):
        return float("inf")
    k = above[0]
    if k == 0:
        return float(steps[0])
    share = (level - curve[k - 1]) / (curve[k] - curve[k - 1])
    return float(steps[k - 1] + share * (steps[k] - steps[k - 1]))


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
