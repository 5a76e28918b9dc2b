"""Several seeds against what they began with."""

import json

import pytest

from jvlmm.errors import ConfigError
from jvlmm.recipes.comparing import Compare
from jvlmm.recipes.recipe import Run


def evaluation(**accuracy):
    return {"evaluation": {"accuracy": accuracy}}


def test_gains_are_means_over_seeds_with_their_deviation(tmp_path, capsys):
    results = {
        "before": evaluation(overall=0.5, count=0.25),
        "after_0": evaluation(overall=0.6, count=0.25),
        "after_1": evaluation(overall=0.7, count=0.25),
        "after_2": evaluation(overall=0.8, count=0.25),
    }
    result = Compare(after=("after_0", "after_1", "after_2")).run(Run(tmp_path, 0, results))
    overall = {"before": 0.5, "after": 0.7, "gain": 0.2, "std": 0.1, "gains": [0.1, 0.2, 0.3]}
    assert result["gains"]["overall"] == overall
    assert result["gains"]["count"]["std"] == 0
    assert json.loads((tmp_path / result["path"]).read_text()) == result["gains"]
    assert "3 seeds" in capsys.readouterr().out


def test_one_seed_has_no_deviation():
    with pytest.raises(ConfigError, match=r"after=\('a',\) names no spread"):
        Compare(after=("a",))
