"""Two methods while they learn: when one reaches what the other ends with."""

import json

import numpy as np
import pytest

from jvlmm.errors import ConfigError
from jvlmm.recipes.curves import CompareCurves, compared, reached
from jvlmm.recipes.recipe import Run

STEPS = np.array([0, 10, 20, 40])


@pytest.mark.parametrize(
    ("curve", "level", "expected"),
    [
        ([0, 1, 2, 3], 1.5, 15),
        ([0, 1, 2, 3], 2.5, 30),
        ([0, 2, 0, 3], 1, 5),
        ([4, 1, 2, 3], 4, 0),
        ([0, 0, 0, 1], 2, np.inf),
    ],
)
def test_a_level_is_reached_between_evaluations(curve, level, expected):
    assert reached(STEPS, np.array(curve, float), level) == expected


def test_intervals_are_those_of_the_seeds():
    first = np.array([[0, 0.1, 0.2, 0.4], [0, 0.3, 0.4, 0.6]])
    found = compared(STEPS, first, first[:, [0, 2, 3, 3]])
    last = found["curve"][-1]
    assert (last["step"], last["first"], last["second"]) == (40, 0.5, 0.5)
    assert last["first_half_width"] == pytest.approx(12.706 * 0.1, abs=1e-3)  # t of 1 degree of freedom
    assert found["ratio"] == 0.5 and found["ratio_interval"] == [0.5, 0.5] and found["first_reaches_its_own"] == 1
    assert found["lead"] == pytest.approx((0 + 0.1 + 0.2 + 0) / 4, abs=1e-4) and found["lead_half_width"] == 0
    assert (found["curve"][1]["lead"], found["curve"][1]["lead_half_width"]) == (0.1, 0)
    never = compared(STEPS, first, first - 0.3)
    assert never["ratio"] is None and never["ratio_interval"][1] is None


def test_the_stage_reads_what_the_run_has_logged(tmp_path, capsys):
    values = {"a_0": (0.1, 0.5), "a_1": (0.2, 0.6), "b_0": (0.5, 0.9), "b_1": (0.6, 0.8)}
    lines = [
        {"stage": stage, "step": step, "eval/overall": value}
        for stage, of_stage in values.items()
        for step, value in zip((5, 10), of_stage, strict=True)
    ]
    lines.append({"stage": "a_0", "step": 6, "loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage = CompareCurves(first=("a_0", "a_1"), second=("b_0", "b_1"))
    result = stage.run(Run(tmp_path, 0))
    assert result["ratio"] == 0.5 == json.loads((tmp_path / "curves.json").read_text())["ratio"]
    assert "2 seeds" in capsys.readouterr().out


def test_methods_need_the_same_seeds_two_or_more():
    with pytest.raises(ConfigError, match="as many stages of both"):
        CompareCurves(first=("a", "b"), second=("c",))
