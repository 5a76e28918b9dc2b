"""What a teacher costs, measured in one run."""

import json

import pytest
from toy_preset import toy_preset

from jvlmm.bench import visd
from jvlmm.bench.group_workload import small_group
from jvlmm.bench.process import BenchError
from jvlmm.cli.main import main


def test_a_step_is_the_sum_of_its_parts(tmp_path):
    with toy_preset(tmp_path) as name:
        result = visd.run(name, small_group(), rounds=1)
    json.dumps(result)
    values = {measure["name"]: measure["value"] for measure in result["measures"]}
    assert all(value > 0 for value in values.values())
    grpo = values["rollout"] + values["update"]
    taught = values["rollout"] + values["teach"] + values["taught_update"] + values["follow"]
    assert values["grpo_step"] == pytest.approx(grpo, abs=1e-3)
    assert values["step_ratio"] == pytest.approx(taught / grpo, rel=0.05)
    assert result["command"].startswith("jvlmm bench visd --preset toy --prompt 50 --completion 8 --group 2 ")


def test_tokens_that_were_not_weighed_are_no_result():
    with pytest.raises(BenchError, match="15 of 16 tokens were weighed"):
        visd._check({"taught_update": 15, "teach": 16}, small_group())


def test_bad_values_are_refused_in_one_line(capsys):
    assert main(["bench", "visd", "--rounds", "0"]) == 1
    assert capsys.readouterr().err.strip() == "jvlmm: error: --rounds 0 is too small; give at least 1"
