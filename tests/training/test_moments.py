"""Moments in bfloat16: half the bytes, unbiased, close to float32 in training, saved and resumed to the bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_training as toy

from jvlmm.training.checkpoints import Checkpoints
from jvlmm.training.moments import round_at_random, scale_by_adam_in_bfloat16
from jvlmm.training.optimizer import OptimizerOptions, make_optimizer
from jvlmm.training.state import create_state
from jvlmm.training.step import make_train_step

STEPS = 150


def make(moment_dtype, rule="adamw"):
    """(state, step)."""
    options = OptimizerOptions(3e-3, rule, schedule="constant", weight_decay=0.1, moment_dtype=moment_dtype)
    optimizer = make_optimizer(options, STEPS, toy.MODULES)
    return create_state(toy.init_params(), optimizer), make_train_step(toy.loss_fn, optimizer)


def train(state, step, steps):
    """(state, losses) of updates on one batch."""
    batch, losses = toy.make_batch(np.random.default_rng(0)), []
    for _ in range(steps):
        state, metrics = step(state, [batch])
        losses.append(float(metrics["loss"]))
    return state, losses


def moment_bytes(state):
    matrices = [x for x in jax.tree.leaves(state.opt_state) if x.size >= toy.WIDTH]
    return sum(x.nbytes for x in matrices)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_they_take_half_the_bytes_and_train_as_float32_does(rule):
    (exact, exact_step), (half, half_step) = make("float32", rule), make("bfloat16", rule)
    assert moment_bytes(half) * 2 == moment_bytes(exact)
    (exact, expected), (half, losses) = train(exact, exact_step, STEPS), train(half, half_step, STEPS)
    assert moment_bytes(half) * 2 == moment_bytes(exact)
    assert losses[-1] < 0.1 * losses[0]
    np.testing.assert_allclose(losses[:30], expected[:30], rtol=0.01)
    assert abs(losses[-1] - expected[-1]) < 0.005 * losses[0]
    assert losses != expected


def test_the_update_itself_is_that_of_float32():
    """The first one, whose moments have not been rounded yet."""
    gradients = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)}
    rules = scale_by_adam_in_bfloat16(0.9, 0.999, 1e-8), optax.scale_by_adam(0.9, 0.999, 1e-8)
    found, expected = (rule.update(gradients, rule.init(gradients))[0] for rule in rules)
    np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-6)
    assert found["kernel"].dtype == jnp.float32


def test_the_second_moment_falls_when_gradients_do():
    """Rounded to nearest it would stay where it was: a thousandth of it is less than half a step of bfloat16."""
    rule = scale_by_adam_in_bfloat16(0.9, 0.999, 1e-8)
    update = jax.jit(rule.update)
    _, state = update(jnp.full(4096, 3.0), rule.init(jnp.zeros(4096)))
    before = np.mean(np.asarray(state.nu, np.float32))
    for _ in range(500):
        _, state = update(jnp.zeros(4096), state)
    fallen = np.mean(np.asarray(state.nu, np.float32)) / before
    assert abs(fallen / 0.999**500 - 1) < 0.01


def test_rounding_at_random_takes_neighbours_in_proportion():
    rng = np.random.default_rng(1)
    x = jnp.asarray(np.exp(rng.uniform(-20, 20, 64)), jnp.float32)
    draws = np.asarray(jax.vmap(partial(round_at_random, x))(jax.random.split(jax.random.key(0), 4096)), np.float64)
    step = 2.0 ** (np.floor(np.log2(np.asarray(x, np.float64))) - 7)  # between neighbours in bfloat16
    assert np.all(np.abs(draws - x) < step)
    assert np.all(np.abs(draws.mean(axis=0) - x) < 0.05 * step)
    exact = x.astype(jnp.bfloat16)
    np.testing.assert_array_equal(round_at_random(exact.astype(jnp.float32), jax.random.key(3)), exact)
    assert not np.any(round_at_random(jnp.zeros(100), jax.random.key(4)))


def test_a_resumed_run_repeats_the_rounding(tmp_path):
    state, step = make("bfloat16")
    state, _ = train(state, step, 5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, None)
        expected = train(state, step, 5)
        restored, _ = checkpoints.restore(make("bfloat16")[0])
    found = train(restored, step, 5)
    assert found[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
