import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from toy_preset import TOY, toy_preset

from jvlmm.bench import grpo
from jvlmm.bench.group_workload import GroupWorkload, make_rollouts, small_group
from jvlmm.bench.process import BenchError
from jvlmm.cli.main import main
from jvlmm.models.qwen2_5_vl import abstract_params


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with toy_preset(tmp_path_factory.mktemp("compiled")) as name:
        return grpo.run(name, small_group(), rounds=1)


def test_one_run_compares_both_layouts_on_equal_updates(result):
    json.dumps(result)
    assert result["bench"] == "grpo" and result["hardware"].endswith("2 threads")
    assert result["command"].startswith("jvlmm bench grpo --preset toy --prompt 50 --completion 8 --group 2 ")
    assert result["sizes"]["visual_tokens"] == 15 and result["sizes"]["frames"] == 2
    assert all(measure["value"] > 0 for measure in result["measures"])


def test_ratios_follow_from_the_raw_figures(result):
    values = {measure["name"]: measure["value"] for measure in result["measures"]}
    update, rollout = ({side: values[f"{side}_{name}"] for side in grpo.SIDES} for name in ("update", "rollout"))
    expected = {
        "update_speedup": update["naive"] / update["shared"],
        "step_speedup": (update["naive"] + rollout["naive"]) / (update["shared"] + rollout["shared"]),
        "update_memory_ratio": values["shared_update_memory"] / values["naive_update_memory"],
        "rollout_2_over_1": rollout["shared"] / values["shared_rollout_one"],
    }
    assert list(expected) == [measure["name"] for measure in result["measures"] if measure["unit"] == "ratio"]
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=0.02, abs=1e-3)


def test_memory_is_that_of_whole_updates(result):
    values = {measure["name"]: measure["value"] for measure in result["measures"]}
    weights = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(TOY)[0]))
    for name in ("shared_update_memory", "naive_update_memory", "naive_row_update_memory"):
        assert values[name] > 4 * weights  # and as much again for each of gradients and two moments


def test_the_video_fills_the_prompt():
    workload = GroupWorkload()
    sizes = workload.sizes(TOY)
    assert sizes["frames"] == 28 and sizes["visual_tokens"] == 1960
    assert workload.of_prompt(TOY).text_tokens == (88,)


def test_completions_have_all_their_tokens_and_the_advantages_no_mean():
    rollouts, advantages = make_rollouts(small_group(), TOY)
    assert [len(rollout.tokens) for rollout in rollouts] == [8, 8]
    assert not any(np.isin(rollout.tokens, TOY.tokens.eos).any() for rollout in rollouts)
    assert advantages.mean() == pytest.approx(0, abs=1e-6) and advantages.std() == pytest.approx(1, abs=1e-6)


def test_layouts_that_differ_are_refused():
    update = {"loss": 0.0, "grad_norm": 2.0, "sampler_gap_sum": 30.0}
    side = {"update": update, "rollout": [[1] * 8] * 2}

    def check(**changed):
        grpo._check_equal({"shared": {**side, **changed}, "naive": side}, small_group())

    check(update={"loss": 1e-8, "grad_norm": 2.0001, "sampler_gap_sum": 30.001})
    for name, value in (("loss", 0.01), ("grad_norm", 2.1), ("sampler_gap_sum", 31.0), ("grad_norm", float("nan"))):
        with pytest.raises(BenchError, match=f"the same: {name}"):
            check(update=update | {name: value})
    with pytest.raises(BenchError, match="shared layout drew completions of"):
        check(rollout=[[1] * 8, [1] * 7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "--preset 'huge' is not known; choose one of tiny, small, 3b, 7b, 32b, 72b"),
        (["--prompt", "100"], "--prompt 100 is too small; give at least 172: two frames have 140 tokens, and text 32"),
        (["--completion", "0"], "--completion 0 is too small; give at least 1"),
        (["--group", "1"], "--group 1 is too small; give at least 2"),
        (["--threads", "0"], "--threads 0 is too small; give at least 1"),
        (["--rounds", "0"], "--rounds 0 is too small; give at least 1"),
    ],
)
def test_bad_values_are_refused_in_one_line(arguments, message, capsys):
    assert main(["bench", "grpo", *arguments]) == 1
    assert capsys.readouterr().err.strip() == f"jvlmm: error: {message}"


def test_a_frame_needs_its_places():
    with pytest.raises(BenchError, match="at least 47"):
        replace(small_group(), prompt=46).check(TOY)
