"""What the loop logs, and that it compiles nothing twice."""

import json
import threading
from types import SimpleNamespace

import jax
import pytest
import toy_training as toy

from jvlmm.errors import ConfigError
from jvlmm.training import meter
from jvlmm.training.loop import FitOptions
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_every_step_has_one_line_with_rates(tmp_path):
    toy.train(tmp_path, evaluate=lambda state: {"accuracy": int(state.step) / 100}, evaluate_every=5)
    lines = records(tmp_path)
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, toy.TOTAL + 1))
    for line in training:
        assert line["stage"] == "train"
        assert {"grad_norm", "learning_rate", "tokens_per_s", "samples_per_s", "compiles"} <= line.keys()
        assert 0 <= line["data_wait"] <= 1
        assert 8 * line["utilisation"] in (line["loss_tokens"], 2 * line["loss_tokens"])  # rows of 8 or of 4
    evaluated = [(line["step"], line["eval/accuracy"]) for line in lines if "eval/accuracy" in line]
    assert evaluated == [(5, 0.05), (10, 0.1), (14, 0.14)]
    assert list((tmp_path / "tensorboard" / "train").glob("events.*"))


def test_one_program_per_bucket(tmp_path):
    toy.train(tmp_path, toy.ToyLoader(rows=(8, 4)))
    assert records(tmp_path)[-1]["compiles"] == 2, "two sizes of batches: an unexpected recompile or a missing one"


def test_accumulation_compiles_one_program_per_bucket_and_role():
    optimizer = make_optimizer(OptimizerOptions(), 10, toy.MODULES)
    step, loader = make_train_step(toy.loss_fn, optimizer), toy.ToyLoader(rows=(4,))
    state = create_state(toy.init_params(), optimizer)
    for _ in range(4):
        state, _ = step(state, [next(loader)[0] for _ in range(3)])
    assert step.compiles == 3  # first, add, update


def test_log_every_logs_fewer_lines_of_the_same_losses_and_the_utilisation_between_them(tmp_path):
    toy.train(tmp_path / "each")
    toy.train(tmp_path / "some", log_every=6)
    each, some = records(tmp_path / "each"), records(tmp_path / "some")
    assert [(line["step"], line["loss"]) for line in some] == [(s, each[s - 1]["loss"]) for s in (6, 12, 14)]
    for line, steps in zip(some, (each[:6], each[6:12], each[12:]), strict=True):
        tokens = [step["loss_tokens"] for step in steps]
        places = [step["loss_tokens"] / step["utilisation"] for step in steps]
        assert line["utilisation"] == pytest.approx(sum(tokens) / sum(places))


class DeviceOutput:
    """Something the device is still computing until `done` is set."""

    def __init__(self):
        self.done = threading.Event()

    def block_until_ready(self):
        self.done.wait(60)
        return self


def test_data_wait_counts_only_time_the_device_stands_idle(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    rates, output = meter.Meter(), DeviceOutput()
    clock.now = 3.0
    rates.fetched(started=1.0)  # nothing runs yet: two seconds of waiting
    rates.add(samples=6, flops=40.0)
    rates.watch(output)
    clock.now = 4.0
    assert rates.read(tokens=8) == {"samples_per_s": 1.5, "data_wait": 0.5, "tokens_per_s": 2, "model_flops_per_s": 10}
    clock.now = 6.0
    rates.fetched(started=4.0)  # hidden behind the running step
    assert rates.read(tokens=0)["data_wait"] == 0
    clock.now = 7.0
    output.done.set()
    rates.close()
    clock.now = 10.0
    rates.fetched(started=6.0)  # the step ended at 7: three of four seconds
    assert rates.read(tokens=0)["data_wait"] == 0.75


@pytest.mark.parametrize("field", ["total_steps", "accumulation", "log_every", "checkpoint_every"])
def test_impossible_rhythm_is_refused(field):
    with pytest.raises(ConfigError, match=f"{field} = 0 must be at least 1"):
        FitOptions(**{"total_steps": 5, field: 0})


def device(kind, process_index=0, **stats):
    return SimpleNamespace(device_kind=kind, process_index=process_index, memory_stats=lambda: stats or None)


def test_use_of_the_devices_is_told_where_they_tell(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def figures(*devices):
        rates = meter.Meter(devices)
        rates.add(samples=1, flops=197e12)
        clock.now += 2.0
        rates.close()
        return {name: x for name, x in rates.read(tokens=0).items() if name in ("mfu", "hbm_peak_gib")}

    chips = [device("TPU v5 lite", peak_bytes_in_use=size * 2**30) for size in (3, 5)]
    assert figures(*chips) == {"mfu": 0.25, "hbm_peak_gib": 5}
    elsewhere = device("TPU v5 lite", process_index=1, peak_bytes_in_use=9 * 2**30)
    assert figures(*chips, elsewhere)["hbm_peak_gib"] == 5
    assert figures(device("TPU v5 lite")) == {"mfu": 0.5}
    assert figures(device("unheard of", peak_bytes_in_use=2**30)) == {"hbm_peak_gib": 1}
    assert figures(chips[0], device("cpu")) == {"hbm_peak_gib": 3}
    assert figures(device("cpu")) == {}


def test_the_loop_reads_the_devices_of_the_state(tmp_path, monkeypatch):
    toy.train(tmp_path / "cpu", total_steps=3)
    assert not any("hbm_peak_gib" in line or "mfu" in line for line in records(tmp_path / "cpu"))
    asked = []
    monkeypatch.setattr(meter, "memory_peak", lambda devices: asked.append(set(devices)) or 2**31)
    toy.train(tmp_path / "told", total_steps=3)
    assert [line["hbm_peak_gib"] for line in records(tmp_path / "told") if "loss" in line] == [2, 2, 2]
    assert all(devices == {jax.devices()[0]} for devices in asked)
