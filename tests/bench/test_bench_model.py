import importlib.util
import json

import numpy as np
import pytest
from toy_preset import toy_preset

from jvlmm.bench import model
from jvlmm.bench.hardware import describe
from jvlmm.bench.process import BenchError, WorkerProcess
from jvlmm.bench.rounds import measure
from jvlmm.bench.worker import peak_of, serve
from jvlmm.bench.workload import Arrays, Workload, make_arrays, small_workload
from jvlmm.models.presets import PRESETS
from jvlmm.sharding.accelerators import ACCELERATORS

NO_TORCH = importlib.util.find_spec("torch") is None
TINY = small_workload(Workload())


@pytest.mark.skipif(NO_TORCH, reason="PyTorch is not installed: nothing to compare with")
def test_one_run_compares_both_sides_on_equal_results(tmp_path):
    with toy_preset(tmp_path) as name:
        result = model.run(name, workload=TINY, rounds=1)
    json.dumps(result)
    measures = {measure["name"]: measure for measure in result["measures"]}
    for name in ("tower", "prefill", "decode", "train"):
        own, other = measures[f"jvlmm_{name}"]["value"], measures[f"transformers_{name}"]["value"]
        assert own > 0 and other > 0
        assert measures[f"{name}_ratio"]["unit"] == "ratio"
    memory = measures["jvlmm_train_memory"]["value"] / measures["transformers_train_memory"]["value"]
    assert measures["train_memory_ratio"]["value"] == pytest.approx(memory, abs=1e-3)
    assert result["sizes"]["visual_tokens"] == 60
    assert "train_mfu" not in measures  # of accelerators only


def test_the_batch_has_clips_questions_and_answers(tmp_path):
    config = PRESETS["tiny"]
    made = make_arrays(TINY, config)
    made.save(tmp_path)
    loaded = Arrays.load(tmp_path)
    for name, array in vars(made).items():
        np.testing.assert_array_equal(getattr(loaded, name), array)
    assert loaded.lengths.tolist() == [30 + 20, 30 + 12]
    assert (loaded.tokens == config.tokens.video).sum(axis=1).tolist() == [30, 30]
    assert loaded.answers.sum(axis=1).tolist() == [6, 6]
    assert not loaded.answers[1, 42:].any()


def test_sides_that_differ_are_refused():
    same = {"tower": None, "prefill": None, "decode": [1, 2], "train": 2.0}

    def check(other, dtype="float32"):
        return model._check_equal({"jvlmm": same, "transformers": same | other}, dtype)

    assert check({"train": 2.001}) == []
    with pytest.raises(BenchError, match="loss"):
        check({"train": 2.1})
    with pytest.raises(BenchError, match="greedy tokens"):
        check({"decode": [1, 3]})
    assert check({"train": 2.03, "decode": [1, 3]}, "bfloat16") == [measure("equal_tokens", 0.5, "share")]
    with pytest.raises(BenchError, match="loss"):
        check({"train": 2.1}, "bfloat16")


def test_ratios_are_theirs_over_ours_of_medians():
    seconds = {
        "jvlmm": dict.fromkeys(("tower", "prefill", "decode", "train"), [1.0, 1.0, 50.0]),
        "transformers": dict.fromkeys(("tower", "prefill", "decode", "train"), [3.0, 0.1, 3.0]),
    }
    values = {m["name"]: m["value"] for m in model._ratios(seconds, {"jvlmm": 1, "transformers": 4})}
    assert values["tower_ratio"] == 3.0 and values["train_memory_ratio"] == 0.25


def test_accelerators_also_get_shares_of_their_peak():
    peak = ACCELERATORS["h200"]
    facts = {
        "platform": "gpu",
        "device_kind": "NVIDIA H200",
        "train_flops": peak.bfloat16_flops,
        "decode_bytes": peak.memory_bytes_per_second / 10,
    }
    seconds = {"train": [2.0], "decode": [(TINY.new_tokens - 1) * 0.2]}
    values = {m["name"]: m["value"] for m in model._shares(facts, seconds, TINY)}
    assert values == {"train_mfu": 0.5, "decode_bandwidth": 0.5}
    assert model._shares(facts | {"platform": "cpu"}, seconds, TINY) == []


def test_a_side_that_dies_is_named_with_its_last_words(tmp_path):
    with WorkerProcess("jvlmm", tmp_path, threads=1) as worker, pytest.raises(BenchError, match="jvlmm side.*workload"):
        worker.ask("tower")


def test_unknown_preset_is_refused():
    with pytest.raises(BenchError, match="tiny, small"):
        model.run("huge")


def test_hardware_in_one_line():
    assert describe(2, "NVIDIA H200") == "NVIDIA H200"
    assert describe(2, "cpu").endswith("2 threads")


class Allocating:
    """A side whose train step holds 64 MiB for a moment."""

    steps = 0

    def train(self):
        self.steps += 1
        return float(np.ones(64 * 2**20, np.uint8)[-1])

    def device_peak(self):
        return None

    def facts(self):
        return {"platform": "cpu"}


def test_peak_memory_sees_what_a_step_freed_again():
    side, answers = Allocating(), []
    serve(side, ['{"do": "facts"}', '{"do": "memory", "of": "train", "times": 2}', '{"do": "train"}'], answers.append)
    assert answers[0] == {"platform": "cpu"}
    assert answers[2]["result"] == 1.0 and side.steps == 5
    ballast = np.ones(200 * 2**20, np.uint8)
    assert ballast[-1]
    del ballast  # freed before the measurement: it must not count
    assert abs(peak_of(side, "train", 2) - answers[1]["bytes"]) < 32 * 2**20
