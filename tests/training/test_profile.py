"""Traces: of the updates asked for and no others, once."""

import os
import signal

import jax
import pytest
import toy_training as toy

from jvlmm.config import apply_overrides
from jvlmm.errors import ConfigError
from jvlmm.recipes.training import SFT
from jvlmm.training.preemption import Preempted
from jvlmm.training.profile import STEP, ProfileOptions


def traces(directory):
    return sorted((directory / "profile/process_0").rglob("*.xplane.pb"))


def events(path):
    """(name, statistics) of what the host did."""
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    return [(event.name, dict(event.stats)) for plane in planes for line in plane.lines for event in line.events]


def updates(directory):
    """Numbers of the updates in the only trace."""
    (path,) = traces(directory)
    return sorted(int(stats["step_num"]) for name, stats in events(path) if name == STEP)


def terminate_at(last):
    return toy.ToyLoader(on_batch=lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == last else None)


def test_the_updates_asked_for_are_traced_and_no_others(tmp_path):
    calls = {}
    for steps in (1, 3):
        directory = tmp_path / str(steps)
        toy.train(directory, toy.ToyLoader(rows=(8,)), profile=ProfileOptions(start=5, steps=steps))
        assert updates(directory) == list(range(5, 5 + steps))
        calls[steps] = sum(name.startswith("PjitFunction") for name, _ in events(*traces(directory)))
    assert calls[3] == 3 * calls[1] > 0


def test_nothing_is_traced_unasked(tmp_path):
    toy.train(tmp_path)
    assert not (tmp_path / "profile").exists()


def test_a_run_resumed_beyond_the_start_traces_nothing(tmp_path):
    with pytest.raises(Preempted):
        toy.train(tmp_path, terminate_at(6))
    toy.train(tmp_path, profile=ProfileOptions(start=6, steps=3))
    assert not (tmp_path / "profile").exists()


def test_a_run_that_ends_among_them_leaves_its_trace_and_its_successor_keeps_it(tmp_path):
    asked = ProfileOptions(start=5, steps=6)
    with pytest.raises(Preempted):
        toy.train(tmp_path, terminate_at(7), profile=asked)
    assert updates(tmp_path) == [5, 6, 7]
    toy.train(tmp_path, profile=asked)
    assert updates(tmp_path) == [5, 6, 7]


def test_a_trace_is_not_taken_again_by_a_run_thrown_back_before_its_start(tmp_path):
    asked = ProfileOptions(start=6, steps=1)
    toy.train(tmp_path, profile=asked)
    for path in (tmp_path / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)  # as if none had been written
    toy.train(tmp_path, profile=asked)
    assert updates(tmp_path) == [6]


def test_tracing_changes_no_loss(tmp_path):
    toy.train(tmp_path / "plain")
    toy.train(tmp_path / "traced", profile=ProfileOptions(start=2, steps=4))
    plain, traced = (
        [line.split('"loss": ')[1].split(",")[0] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("plain", "traced")
    )
    assert plain == traced


def test_it_is_a_switch_of_the_stage():
    stage = apply_overrides(SFT(), ["profile.start=20", "profile.steps=2"])
    assert stage.profile == ProfileOptions(20, 2) and SFT().profile is None
    assert apply_overrides(SFT(), ["profile.steps=2"]).profile == ProfileOptions(steps=2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["profile.start=0"], r"profile.start = 0 must be at least 1"),
        (["profile.steps=0"], r"profile.steps = 0 must be at least 1"),
        (["steps=12", "profile.steps=4"], r"profile ends with update 13 of a stage of 12; lower profile.start"),
    ],
)
def test_updates_that_there_are_not_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(SFT(), overrides)
