"""Numbers that are not finite never reach parameters, checkpoints or what else a run leaves behind."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy

from jvlmm.errors import CheckpointError, ConfigError, JvlmmError
from jvlmm.training.checkpoints import Checkpoints
from jvlmm.training.finite import NotFinite, SkippedSteps, check_finite
from jvlmm.training.loop import FitOptions
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.policy import update_metrics
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@cache
def brittle_step_of(moments):
    """(optimizer, step), compiled once."""
    optimizer = make_optimizer(OptimizerOptions(1e-2, weight_decay=0.1, moment_dtype=moments), 10, toy.MODULES)
    return optimizer, make_train_step(toy.brittle_loss_fn, optimizer)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("poison", [7.0, np.nan], ids=["finite loss, NaN gradient", "NaN loss"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_an_update_that_is_not_finite_leaves_the_whole_state(moments, poison, microbatches):
    (optimizer, step), loader = brittle_step_of(moments), toy.ToyLoader(rows=(4,))
    state, first = step(create_state(toy.init_params(), optimizer), [next(loader)[0] for _ in range(microbatches)])
    assert first["skipped"] == 0
    before = jax.device_get(state)
    bad = [next(loader)[0] for _ in range(microbatches)]
    bad[-1]["inputs"][:] = poison
    state, metrics = step(state, bad)
    after = jax.device_get(state)
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["grad_norm"])
    assert np.isfinite(metrics["loss"]) == np.isfinite(poison)
    assert after.step == before.step + 1
    assert_identical((after.params, after.opt_state), (before.params, before.opt_state))
    rate = metrics["learning_rate"]
    _, third = step(state, [next(loader)[0] for _ in range(microbatches)])
    assert third["learning_rate"] == rate, "the schedule counts updates that were made"


@pytest.mark.parametrize("numbers", [{1, toy.TOTAL}, {5, 6, 8, 9}])
def test_bad_steps_are_skipped_and_counted(tmp_path, capsys, numbers):
    state = toy.train(tmp_path, toy.PoisonedLoader(numbers), loss=toy.brittle_loss_fn)
    check_finite(state, "the state")
    assert {line["step"] for line in records(tmp_path) if line["skipped"]} == numbers
    assert len(capsys.readouterr().err.splitlines()) == len(numbers)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        check_finite(checkpoints.restore(state)[0], "the checkpoint")


def test_several_in_a_row_stop_the_run_which_goes_on_with_another_learning_rate(tmp_path, capsys):
    stop = r"step 9 of stage 'train': .*gradients nan.*2 before it.*Lower train\.optimizer\.learning_rate"
    with pytest.raises(JvlmmError, match=f"{stop}.*resumes from step 4"):
        toy.train(tmp_path, toy.PoisonedLoader({7, 8, 9}), loss=toy.brittle_loss_fn)
    assert capsys.readouterr().err.count("its update is skipped") == 2
    state = toy.train(tmp_path, loss=toy.brittle_loss_fn, learning_rate=1e-3)
    check_finite(state, "the state")
    assert len([line for line in records(tmp_path) if "loss" in line]) == toy.TOTAL


def test_checkpoints_of_the_parameters_that_led_there_are_deleted(tmp_path):
    with pytest.raises(JvlmmError, match="resumes from step 7"):
        toy.train(tmp_path, toy.PoisonedLoader({9, 10, 11}), loss=toy.brittle_loss_fn, checkpoint_every=1)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 7, "not 8, whose parameters were met by three bad steps"


def test_an_update_that_overflows_stops_the_run_before_anything_is_saved(tmp_path):
    with pytest.raises(JvlmmError, match="step 1 .*made parameters overflow.*resumes from the start"):
        toy.train(tmp_path, learning_rate=1e30, checkpoint_every=1)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_run_of_bad_steps_alone_does_not_end_as_if_it_had_learnt(tmp_path):
    with pytest.raises(JvlmmError, match="step 2 of stage 'train'"):
        toy.train(tmp_path, toy.PoisonedLoader({1, 2}), loss=toy.brittle_loss_fn, total_steps=2)


def test_the_run_can_stop_at_the_first(tmp_path):
    with pytest.raises(JvlmmError, match="step 6 of stage 'train': the loss is nan.*resumes from step 4"):
        toy.train(tmp_path, toy.PoisonedLoader({6}, np.nan), max_nonfinite_steps=1)
    with pytest.raises(ConfigError, match="max_nonfinite_steps = 0 must be at least 1"):
        FitOptions(5, max_nonfinite_steps=0)


def test_weights_that_are_not_finite_are_named():
    tree = {"decoder": {"kernel": jnp.array([1.0, np.inf]), "bias": jnp.zeros(2)}, "count": jnp.arange(3)}
    with pytest.raises(CheckpointError, match="the model: NaN or infinity in decoder/kernel; begin with"):
        check_finite(tree, "the model")
    check_finite({"bias": tree["decoder"]["bias"], "count": tree["count"]}, "the model")


def test_skipped_updates_of_a_policy_are_counted_and_not_in_its_means():
    good = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "param_norm": 3.0, "skipped": 0.0, "tokens": 4.0}
    bad = {**good, "loss": np.nan, "skipped": 1.0, "kl_sum": np.nan}
    assert update_metrics([bad, good]) | {"skipped": 1.0, "loss": 2.0, "tokens": 4.0} == update_metrics([bad, good])
    assert np.isnan(update_metrics([bad])["loss"])


def test_a_step_some_of_whose_updates_were_made_is_no_skipped_step(capsys):
    """Its parameters have moved, and are saved; the message tells how many updates were not made."""
    good = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "param_norm": 3.0, "skipped": 0.0, "tokens": 4.0}
    bad = {**good, "grad_norm": np.nan, "skipped": 1.0}
    steps = SkippedSteps("grpo", 2, 100)
    for number in (1, 2, 3):
        steps.check(number, update_metrics([bad, good, bad]))
        assert steps.in_a_row == 0
    assert capsys.readouterr().err.count("gradients of 2 of its updates are not finite") == 3
    steps.check(4, update_metrics([bad, bad]))
    with pytest.raises(NotFinite, match="1 before it; no update was made"):
        steps.check(5, update_metrics([bad, bad]))
